"""The folder that a run writes to: one run at a time, and no earlier result is overwritten unasked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from kdlib import distributed, files


@contextmanager
def claim(
    out: str | Path,
    results: Sequence[str],
    *,
    resume: bool | None,
    overwrite: bool,
    echo: Callable[[str], None] = print,
) -> Iterator[Path]:
    """Hold the folder `out` for one run, under torchrun for all its processes.

    results: names of what a run writes there. resume: go on from what there is, None for a command that has no such
    option; echo says if there is nothing. overwrite: what an earlier run left is removed first.
    Raises OSError if another run holds the folder or it cannot be written, ValueError for one that holds an earlier run
    unless one of the two is asked for.
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
            _prepare(out, results, resume=resume, overwrite=overwrite, echo=echo)
        distributed.barrier()  # no process looks for a checkpoint before it is clear which there are
        yield out


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
    if overwrite:
        _remove(out, there)


def remove_earlier(out: Path, results: Sequence[str]) -> None:
    """Remove what an earlier run left in a folder that is held; under torchrun every process calls it.

    For a run that may still be refused after the folder is held: see `distill.distill`.
    """
    if distributed.rank() == 0:
        _remove(out, [name for name in results if (out / name).exists()])
    distributed.barrier()  # no process looks for a checkpoint before it is gone


def _remove(out: Path, names: Sequence[str]) -> None:
    for name in names:
        (out / name).unlink()
