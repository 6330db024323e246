"""The command around an experiment: options by typer, one sentence for what goes wrong, and what to do after Ctrl-C."""

from __future__ import annotations

import functools
import shlex
import sys
from collections.abc import Callable

import typer

from kdlib.errors import exit_in_a_sentence


def called(module: str) -> str:
    """The line that started this process, `python -m module` with its options, for the notes beside a file of rows."""
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


def run_command(
    *, stopped: str = "The same command goes on with what is missing.", **commands: Callable[..., None]
) -> None:
    """Run the command that the command line names; of a single one it gives the options alone.

    What a user can cause ends in one sentence and exit code 2, not in a traceback. stopped: what is said after Ctrl-C,
    which ends with exit code 130.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    for name, function in commands.items():
        app.command(name)(_stoppable(function, stopped))
    with exit_in_a_sentence():
        app()


def _stoppable(function: Callable[..., None], stopped: str) -> Callable[..., None]:
    @functools.wraps(function)  # typer reads the options from it
    def call(*inputs: object, **options: object) -> None:
        try:
            function(*inputs, **options)
        except KeyboardInterrupt:
            print(f"\nStopped. {stopped}", file=sys.stderr)
            raise typer.Exit(130) from None

    return call
