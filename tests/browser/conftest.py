"""A Chromium, one JupyterLab for nearly all tests, and a screenshot of every page on which a test failed.

Without a browser these tests are skipped, and fail where CI=1 or KDLIB_BROWSER=1 says that there must be one.
KDLIB_SCREENSHOTS=FOLDER keeps those screenshots there, and takes one of each explorer in passing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from lab import PATIENCE, ROOT, Notebook, Workshop, file_name

REPORTS = pytest.StashKey[dict[str, pytest.TestReport]]()


def missing(what: str) -> NoReturn:
    if {os.environ.get("CI", ""), os.environ.get("KDLIB_BROWSER", "")} & {"1", "true"}:
        pytest.fail(f"{what} Here CI=1 or KDLIB_BROWSER=1 says that there is a browser.")
    pytest.skip(what)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        missing('Playwright is not installed: pip install "playwright>=1.50".')
    as_root = hasattr(os, "geteuid") and os.geteuid() == 0
    with sync_playwright() as playwright:
        try:  # without a path Playwright's own, which `playwright install chromium` fetches
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"] if as_root else [])
        except Error:
            if path is not None:
                raise
            missing("There is no Chromium: apt-get install chromium, or playwright install chromium.")
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def workshop(chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    server = Workshop(tmp_path_factory.mktemp("lab"))
    yield server
    server.close()


@pytest.fixture
def lab(workshop: Workshop) -> Iterator[Workshop]:
    """The one JupyterLab; the kernels that a test has started end with it."""
    yield workshop
    workshop.end_kernels()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    item.stash.setdefault(REPORTS, {})[report.when] = report
    return report


@pytest.fixture
def screenshots() -> Path:
    folder = Path(os.environ.get("KDLIB_SCREENSHOTS") or ROOT / "runs" / "browser")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def page(chromium: Any, lab: Workshop, screenshots: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A page of the browser; it asks for the lab so that it is closed before the kernels end."""
    context = chromium.new_context(viewport={"width": 1280, "height": 1400})
    page = context.new_page()
    page.set_default_timeout(1e3 * PATIENCE)
    broken: list[str] = []
    page.on("pageerror", lambda error: broken.append(str(error)))
    yield page
    reports = request.node.stash.get(REPORTS, {})
    if any(report.failed for report in reports.values()):
        path = screenshots / f"failed-{file_name(request.node.name)}.png"
        page.screenshot(path=path)
        print(f"Screenshot: {path}", *broken, sep="\n")
    context.close()


@pytest.fixture
def look(page: Any, screenshots: Path) -> Callable[[str], None]:
    """Keeps a screenshot under a name, where somebody asked for them."""

    def keep(name: str) -> None:
        if os.environ.get("KDLIB_SCREENSHOTS"):
            page.screenshot(path=screenshots / f"{file_name(name)}.png")

    return keep


@pytest.fixture
def opened(page: Any, lab: Workshop, request: pytest.FixtureRequest) -> Callable[..., Notebook]:
    """Opens a notebook with the cells that it is given, and runs it."""

    def open_(*cells: str) -> Notebook:
        notebook = Notebook(page, lab, lab.write(file_name(request.node.name), list(cells)))
        notebook.run_all()
        return notebook

    return open_
