"""What `kdlib.doctor` finds: each fault in ten random set-ups, and how often it says something of a hundred sound ones.

.venv/bin/python benchmarks/doctor.py [--faulty 10] [--sound 100] [--fault NAME]
.venv/bin/python benchmarks/doctor.py --write    the whole table, put into benchmarks/README.md as well
"""

from __future__ import annotations

import argparse
import collections
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import rounds  # noqa: E402
from doctor_faults import FAULTS, sound  # noqa: E402

from kdlib.doctor import CHECKS, Report, examine  # noqa: E402


def measure_fault(name: str, number: int) -> tuple[int, float, collections.Counter[str]]:
    """In how many of the set-ups it was found, seconds of processor for each, and what else was said."""
    found, seconds, others = 0, 0.0, collections.Counter[str]()
    for seed in range(number):
        report, taken = _timed(FAULTS[name].make(seed))
        said = {one.check for one in report.findings}
        hit = said & set(FAULTS[name].checks)
        found += bool(hit)
        seconds += taken
        others.update(said - set(FAULTS[name].checks))
        if not hit:
            print(f"  missed: {name}, seed {seed}: {sorted(said) or 'nothing'}; skipped {_skipped(report, name)}")
    return found, seconds / number, others


def measure_sound(number: int) -> tuple[collections.Counter[str], collections.Counter[str], float]:
    """How often each check says something, in how many set-ups it could be made, and seconds of processor for each."""
    alarms, made, seconds = collections.Counter[str](), collections.Counter[str](), 0.0
    for seed in range(number):
        name, arguments = sound(seed)
        report, taken = _timed(arguments)
        seconds += taken
        made.update(set(CHECKS) - set(report.skipped))
        for one in report.findings:
            alarms[one.check] += 1
            print(f"  false alarm: {name}, seed {seed}: {one.check}: {one.measured}")
    return alarms, made, seconds / number


def _timed(arguments: dict) -> tuple[Report, float]:
    started = time.process_time()
    report = examine(**arguments)
    return report, time.process_time() - started


def _skipped(report: Report, name: str) -> dict[str, str]:
    return {check: report.skipped[check] for check in FAULTS[name].checks if check in report.skipped}


def main() -> None:
    """Print the table; with --write, put it into benchmarks/README.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faulty", type=int, default=10)
    parser.add_argument("--sound", type=int, default=100)
    parser.add_argument("--fault", action="append", choices=FAULTS)
    parser.add_argument("--write", action="store_true", help="put the whole table into benchmarks/README.md")
    options = parser.parse_args()
    if options.write and (options.fault or (options.faulty, options.sound) != (10, 100)):
        parser.error("--write is for the whole table. Leave out --faulty, --sound and --fault, or --write.")
    torch.set_num_threads(1)
    nothing = collections.Counter[str](), collections.Counter[str](), 0.0
    alarms, made, seconds = measure_sound(options.sound) if options.sound else nothing
    head = f"| fault | found by | found of {options.faulty} | false alarms, of sound set-ups | seconds | also said |"
    lines = [head, "|---|---|---|---|---|---|"]
    print("", *lines, sep="\n")
    for name in options.fault or FAULTS:
        found, each, others = measure_fault(name, options.faulty)
        checks = FAULTS[name].checks
        also = ", ".join(f"{check} {count}" for check, count in others.most_common())
        wrong = f"{sum(alarms[check] for check in checks)} of {min(made[check] for check in checks)}"
        lines.append(f"| {name} | {', '.join(checks)} | {found} | {wrong} | {each:.2f} | {also} |")
        print(lines[-1], flush=True)
    silent = sorted(set(CHECKS) - {check for one in FAULTS.values() for check in one.checks})
    summary = f"Sound set-ups: {sum(alarms.values())} findings in {options.sound}, {seconds:.2f} s each."
    print(f"\n{summary}")
    if options.write:
        rounds.put_in_readme("doctor", "\n".join([*lines, "", summary]))
    print(f"Checks without a set-up of their own here: {', '.join(silent)}.")


if __name__ == "__main__":
    main()
