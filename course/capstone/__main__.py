"""The commands of the capstone; course/capstone/README.md leads through them.

python -m course.capstone cost --teacher A --student B --data imagefolder@32:pictures --out runs/cost.json
python -m course.capstone repeat runs/capstone/study/methods-....csv --method kd
python -m course.capstone draft --study CSV --student JSON --export JSON --cost JSON --out report.md
python -m course.capstone check report.md
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from course.capstone import check, read_evidence, read_report
from course.grading import wrap
from kdlib.errors import escape_unprintable

# What an entry that is missing, or is of another kind, leads to where it is read.
EDITED = (LookupError, TypeError, AttributeError, ArithmeticError)
WRITTEN_BY = {
    "study": "kdlib study",
    "student": "kdlib distill",
    "export": "kdlib export",
    "cost": "python -m course.capstone cost",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns 0, 1 for a report with faults, 2 for what cannot be read."""
    escape_unprintable()
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except (ValueError, OSError, ImportError) as error:
        print(f"{error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m course.capstone", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("pictures", help="write a folder of pictures, from Fashion-MNIST, to practise with")
    one.add_argument("folder", type=Path)
    one.add_argument("--scale", type=int, default=1, help="divide the numbers of pictures by this")
    one.set_defaults(run=_pictures)
    one = commands.add_parser("cost", help="measure sizes and times of teacher and student")
    for name in ("teacher", "student", "data"):
        one.add_argument(f"--{name}", required=True)
    one.add_argument("--out", type=Path, required=True)
    one.set_defaults(run=_cost)
    one = commands.add_parser("repeat", help="print the command that trains a student of the study again")
    one.add_argument("study", type=Path)
    one.add_argument("--method", default="kd")
    one.add_argument("--seed", type=int, default=0)
    one.set_defaults(run=_repeat)
    one = commands.add_parser("draft", help="write a report with the numbers, without the words")
    for name in ("study", "student", "export", "cost", "out"):
        one.add_argument(f"--{name}", type=Path, required=True)
    one.set_defaults(run=_draft)
    one = commands.add_parser("check", help="hold every claim of a report against the files")
    one.add_argument("report", type=Path)
    one.set_defaults(run=_check)
    return parser


def _pictures(options: argparse.Namespace) -> int:
    from course.capstone import pictures

    counts = pictures.write(options.folder, options.scale)
    print(f"Written to {options.folder}: {', '.join(f'{count:,} for {part}' for part, count in counts.items())}.")
    return 0


def _cost(options: argparse.Namespace) -> int:
    from course.capstone.cost import measured
    from kdlib.files import write_text

    content = measured(options.teacher, options.student, options.data)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(options.out, json.dumps(content, indent=1) + "\n")
    for role in ("teacher", "student"):
        facts = content[role]
        print(f"{role}: {facts['parameters']:,} parameters, {facts['macs']:,} MACs, {facts['milliseconds']:.2f} ms")
    print(f"Written to {options.out}")
    return 0


def _repeat(options: argparse.Namespace) -> int:
    from course.capstone.draft import repeat_command
    from course.capstone.evidence import load_study

    print(repeat_command(load_study(options.study), options.method, options.seed))
    return 0


def _draft(options: argparse.Namespace) -> int:
    from course.capstone import draft
    from course.capstone.evidence import collect
    from kdlib.files import write_text

    if options.out.exists():
        raise ValueError(f"{options.out} is there already, and its words are yours. Choose another name with --out.")
    paths = {name: getattr(options, name) for name in ("study", "student", "export", "cost")}
    folder = options.out.absolute().parent
    from_report = {name: _seen_from(folder, path) for name, path in paths.items()}
    try:
        text = draft.write(collect(**paths), from_report)
    except EDITED as error:
        raise ValueError(_not_as_written(paths, error)) from error
    write_text(options.out, text)
    print(
        f"Written to {options.out}. Put words where it says TODO, then: python -m course.capstone check {options.out}"
    )
    return 0


def _seen_from(folder: Path, path: Path) -> str:
    """A path relative to a folder; the whole one where there is no way, as between the drives of Windows."""
    try:
        return Path(os.path.relpath(path.absolute(), folder)).as_posix()
    except ValueError:
        return path.absolute().as_posix()


def _check(options: argparse.Namespace) -> int:
    report = read_report(options.report)
    try:
        faults = check(report, read_evidence(report))
    except EDITED as error:
        raise ValueError(_not_as_written({name: report.file(name) for name in WRITTEN_BY}, error)) from error
    if not faults:
        print(f"{options.report}: every claim that can be checked holds. Whether it is worth reading, people must say.")
        return 0
    print(f"{options.report}: {len(faults)} fault{'s' * (len(faults) > 1)}\n")
    print("\n\n".join(wrap(fault) for fault in faults))
    return 1


def _not_as_written(paths: Mapping[str, Path], error: Exception) -> str:
    files = "\n".join(f"  {path}   written by {WRITTEN_BY[name]}" for name, path in paths.items())
    return (
        f"One of these files is not as its command wrote it ({type(error).__name__}: {error}). Make the one that was "
        f"edited anew:\n{files}"
    )


if __name__ == "__main__":
    sys.exit(main())
