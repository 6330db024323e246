"""The folder that a run writes to: one run at a time, and no earlier result is overwritten unasked."""

from __future__ import annotations

import glob
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from kdlib import distributed, files

ASIDE = ".earlier"  # begins the name of a folder in that of the run, one for each command (_aside)
PART = ".earlier.part"  # the same while files are moved: if that is interrupted, they all belong back


@contextmanager
def claim(
    out: str | Path,
    results: Sequence[str],
    *,
    resume: bool | None,
    overwrite: bool,
    at_once: bool = True,
    checkpoints: Sequence[str] = (),
    echo: Callable[[str], None] = print,
) -> Iterator[Path]:
    """Hold the folder `out` for one run, under torchrun for all its processes.

    results: names of what a run writes there. resume: go on from what there is, None for a command that has no such
    option; echo says if there is nothing. overwrite: what an earlier run left is set aside, and is gone when this one
    has ended. It comes back if this one fails before it has written a result, because it is refused for instance; if it
    fails later, it stays aside, since this one may have begun with a file of it (`locate`).
    at_once: set it aside now; else the run does, by `set_aside`, when it has read what it needs of it. checkpoints:
    those of the results without which a finished run cannot be resumed.
    Raises OSError if another run holds the folder or it cannot be written, ValueError for one that holds an earlier run
    unless one of the two is asked for, and for a finished run that is to be resumed without its checkpoints.
    """
    out = Path(out)
    if resume and overwrite:
        raise ValueError("--resume goes on from an earlier run, and --overwrite removes it: give one of the two.")
    busy = f"{out} is in use by another run that has not ended. Wait for it, or choose another folder with --out."
    main = distributed.rank() == 0
    if main:
        files.ensure_writable(out)  # fails now rather than after the training
    with files.lock(out / ".lock", busy) if main else nullcontext():
        if main:
            _settle(out, results)  # what a run that was killed had set aside
            _prepare(out, results, resume=resume, overwrite=overwrite, echo=echo)
            if resume:
                _refuse_without(checkpoints, out, results)
        try:
            if overwrite and at_once:
                set_aside(out, results)
            distributed.barrier()  # no process looks for a checkpoint before it is clear which there are
            yield out
        except BaseException:
            if main:
                _settle(out, results)
            raise
        if main and results:
            shutil.rmtree(_aside(out, results), ignore_errors=True)


def _prepare(
    out: Path, results: Sequence[str], *, resume: bool | None, overwrite: bool, echo: Callable[[str], None]
) -> None:
    there = [name for name in results if (out / name).exists()]
    if resume and not there:
        echo(f"There is nothing in {out} to go on from: the run starts anew.")
    if there and not resume and not overwrite:
        replace = "Replace it with" if resume is None else "Go on from it with --resume, replace it with"
        raise ValueError(
            f"{out} holds an earlier run ({', '.join(there)}). {replace} --overwrite, or choose another folder with "
            "--out."
        )


def _refuse_without(checkpoints: Sequence[str], out: Path, results: Sequence[str]) -> None:
    """Raise ValueError for a finished run whose checkpoints are gone: it would be trained anew, and replaced."""
    finished = [name for name in results if (out / name).exists() and not name.endswith("checkpoint")]
    missing = [name for name in checkpoints if not (out / name).exists()]
    if finished and missing:
        raise ValueError(
            f"{out} holds a finished run ({', '.join(finished)}) without its {' and '.join(missing)}, so there is "
            "nothing to go on from. Train anew and replace it with --overwrite, or choose another folder with --out."
        )


def set_aside(out: Path, results: Sequence[str]) -> None:
    """Set aside what an earlier run left in a folder that is held; under torchrun every process calls it."""
    distributed.barrier()  # each has read what it begins with
    if distributed.rank() == 0:
        there = [name for name in results if (out / name).exists()]
        if there:
            aside = _aside(out, results)
            (out / PART).mkdir(exist_ok=True)
            for name in (*there, aside.name):  # the last one is there where an unfinished run had set aside another
                if (out / name).exists():
                    (out / name).replace(out / PART / name)
            (out / PART).replace(aside)
    distributed.barrier()  # no process looks for a checkpoint before it is gone


def locate(file: str | Path, out: str | Path, *, resume: bool) -> str | Path:
    """Where a file that a run begins with is now: in `out` it may have been set aside by the run that replaces it.

    resume: of that very run, whose result may lie in the old place by now. Where an unfinished run was replaced, what
    that one had set aside lies deeper.
    """
    path, folder = Path(file), Path(out)
    if path.parent.resolve() != folder.resolve() or (path.exists() and not resume):
        return file
    aside = folder.glob(f"{ASIDE}*/**/{glob.escape(path.name)}")
    return min(aside, key=lambda found: len(found.parts), default=file)


def _aside(out: Path, results: Sequence[str]) -> Path:
    """Where a command sets aside its own results, apart from those of other commands in the same folder."""
    return out / f"{ASIDE}-{results[0]}"


def _settle(out: Path, results: Sequence[str]) -> None:
    """Bring back what was set aside, unless a newer run has written a result."""
    _bring_back(out)
    for aside in sorted(path for path in out.glob(f"{ASIDE}-*") if path.is_dir()):
        # Of another command the results are not known, but for those that it had.
        own = results and aside == _aside(out, results)
        newer = results if own else [path.name for path in aside.iterdir() if path.name != aside.name]
        if not any((out / name).exists() for name in newer):
            aside.replace(out / PART)
            _bring_back(out)


def _bring_back(out: Path) -> None:
    """Undo a move that was interrupted: no newer run has written anything since."""
    for path in (out / PART).glob("*"):
        path.replace(out / path.name)
    shutil.rmtree(out / PART, ignore_errors=True)


def find_checkpoints(out: Path) -> set[tuple[str, int]]:
    """The checkpoints in the folder of a run, also those set aside there, each by its name and when it was written."""
    found = (*out.glob("*checkpoint"), *out.glob(f"{ASIDE}*/**/*checkpoint"))
    return {(path.name, path.stat().st_mtime_ns) for path in found if path.exists()}


def remove_earlier(out: Path, results: Sequence[str]) -> None:
    """Remove what an earlier run left in a folder that is held and this one has not replaced."""
    for name in results:
        (out / name).unlink(missing_ok=True)
