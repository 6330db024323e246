"""With this file `pytest` executes every lesson again, compares what its cells give, and fails where they differ.

It is strict whatever the command line says: every cell is compared but those with the tag nbval-ignore-output.
"""

from __future__ import annotations

import os

import pytest

SECONDS = 120  # for one cell
OUTPUT_SECONDS = 60  # nbval gives an output 5 s to arrive, which a busy machine exceeds


def pytest_configure(config: pytest.Config) -> None:
    """Ask nbval for the strict comparison, in the environment of pytest itself."""
    if not config.pluginmanager.hasplugin("nbval"):
        raise pytest.UsageError("nbval is missing, so no lesson would be tested. Run: make test")
    config.option.nbval, config.option.nbval_lax = True, False
    config.option.nbval_current_env = True
    config.option.nbval_cell_timeout = SECONDS
    config.option.nbval_kernel_startup_timeout = SECONDS
    os.environ["KDLIB_PROGRESS"] = "off"  # what this learner has done would be another output
    os.environ.pop("MPLBACKEND", None)  # "Agg" would leave out pyplot's figures


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the outputs more time."""
    for item in items:
        if hasattr(item, "output_timeout"):
            item.output_timeout = OUTPUT_SECONDS
