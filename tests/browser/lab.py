"""JupyterLab in a real browser: a server on a folder of copies, and a page on which a notebook is open."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

PATIENCE = float(os.environ.get("KDLIB_PATIENCE", "120"))  # seconds for whatever is waited for

ROOT = Path(__file__).resolve().parents[2]
ADDRESS = re.compile(r"(http://127\.0\.0\.1:\d+)(/\S*)\?token=(\w+)\n")

# Which picture a key press led to, and when it could be seen: after its bytes were decoded (load), in the frame that
# follows (requestAnimationFrame), once that frame was painted (a message that waits behind the painting).
STOPWATCH = """() => {
  if (window.stopwatch) return;
  const watch = window.stopwatch = {start: 0, times: []};
  const stop = () => {
    if (!watch.start) return;
    watch.times.push(performance.now() - watch.start);
    watch.start = 0;
  };
  document.addEventListener('keydown', () => { watch.start = performance.now(); }, true);
  document.addEventListener('load', event => {
    if (event.target.tagName !== 'IMG' || !watch.start) return;
    requestAnimationFrame(() => {
      const channel = new MessageChannel();
      channel.port1.onmessage = stop;
      channel.port2.postMessage(0);
    });
  }, true);
}"""
PIXELS = """image => {
  const canvas = document.createElement('canvas');
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  canvas.getContext('2d').drawImage(image, 0, 0);
  return canvas.toDataURL();
}"""
ERRORS = """() => window.jupyterapp.shell.currentWidget.content.model.sharedModel.toJSON().cells
  .flatMap(cell => cell.outputs ?? []).filter(one => one.output_type === 'error')
  .map(one => `${one.ename}: ${one.evalue}`)"""
IDLE = "() => window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"


class Lab:
    """JupyterLab as `make lab` starts it, without the learner's own settings, and what it said on the way."""

    def __init__(self, folder: Path, *options: str, course: Path = ROOT) -> None:
        self._temporary, self.log = folder / "temporary", folder / "jupyterlab.log"
        self._temporary.mkdir(parents=True)
        command = [sys.executable, "-m", "course.lab", "--no-browser", *options]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=self._environment(folder, course), cwd=folder
            )
        self.address, self.lesson, self.token = self._answers()

    def _environment(self, folder: Path, course: Path) -> dict[str, str]:
        own = {
            "JUPYTER_CONFIG_DIR": "config",
            "JUPYTER_DATA_DIR": "data",
            "JUPYTER_RUNTIME_DIR": "runtime",
            "JUPYTERLAB_SETTINGS_DIR": "settings",
            "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
            "IPYTHONDIR": "ipython",
            "KDLIB_PROGRESS": "progress.json",
        }
        environment = {**os.environ, **{name: str(folder / "home" / where) for name, where in own.items()}}
        environment.pop("MPLBACKEND", None)
        return {**environment, "TMPDIR": str(self._temporary), "PYTHONPATH": str(course)}

    def _answers(self) -> tuple[str, str, str]:
        """Address, path and token, once the server answers; RuntimeError with its last words if it does not."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and self.process.poll() is None:
            if said := ADDRESS.search(self.log.read_text()):
                self.address, _, self.token = said.groups()
                with contextlib.suppress(OSError):  # not yet
                    self.ask("GET", "status")
                    return said.groups()
            time.sleep(0.2)
        self.process.kill()
        self.process.wait()
        raise RuntimeError(f"JupyterLab did not start:\n{self.log.read_text()[-3000:]}")

    def ask(self, method: str, what: str) -> Any:
        """What the server's own interface answers; OSError if it refuses."""
        headers = {"Authorization": f"token {self.token}"}
        request = urllib.request.Request(f"{self.address}/api/{what}", method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.loads(answer.read() or "null")

    def end_kernels(self) -> None:
        """End every kernel, and return when they are gone; no page may be open that would ask for them."""
        for session in self.ask("GET", "sessions"):
            self.ask("DELETE", f"sessions/{session['id']}")
        for kernel in self.ask("GET", "kernels"):
            self.ask("DELETE", f"kernels/{kernel['id']}")
        assert self.ask("GET", "kernels") == []

    def close(self) -> None:
        """Stop the server as Ctrl-C does; it ends its kernels and removes what it had put down."""
        self.process.send_signal(signal.SIGINT)
        try:
            assert self.process.wait(30) == 0, self.log.read_text()[-3000:]
        finally:
            self.process.kill()  # does nothing where it has ended
        assert list(self._temporary.glob("kdlib-*")) == []  # what kernels leave, such as compiled code, is theirs


class Workshop(Lab):
    """JupyterLab on an empty folder for copies and small notebooks, on any free port, open to the tests' scripts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "notebooks"
        self.folder.mkdir()
        more = {"ServerApp.root_dir": self.folder, "ServerApp.port": 0, "LabApp.expose_app_in_browser": True}
        super().__init__(folder, *(f"--{name}={value}" for name, value in more.items()))

    def write(self, name: str, cells: list[str]) -> str:
        """A notebook with these code cells; its name."""
        import nbformat

        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, self.folder / f"{name}.ipynb")
        return f"{name}.ipynb"

    def copy(self, path: Path) -> str:
        """A copy of a notebook; its name."""
        shutil.copy(path, self.folder / path.name)
        return path.name


class Notebook:
    """A notebook that is open in a page of the browser."""

    def __init__(self, page: Any, lab: Workshop, name: str) -> None:
        self.page = page
        page.goto(f"{lab.address}/lab/tree/{name}?token={lab.token}&reset")
        page.locator(".jp-Notebook").wait_for()
        page.wait_for_function(IDLE)

    def run_all(self, patience: float = PATIENCE) -> None:
        """Run every cell, from top to bottom, and wait so many seconds for the end."""
        self.page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
        self.page.wait_for_function(IDLE, timeout=1e3 * patience)
        assert self.errors() == []

    def errors(self) -> list[str]:
        """The exceptions in cells; from the model, because cells out of sight may not be in the page."""
        return self.page.evaluate(ERRORS)

    def cell(self, number: int) -> Any:
        return self.page.locator(".jp-Notebook .jp-CodeCell").nth(number)

    def output(self, number: int) -> str:
        """What a cell has printed, in one line."""
        return " ".join(" ".join(self.cell(number).locator(".jp-OutputArea-output").all_inner_texts()).split())

    def rewrite(self, number: int, text: str) -> None:
        """Type another text into a cell and run it, as a learner does."""
        self.cell(number).locator(".cm-content").click()
        self.page.keyboard.press("ControlOrMeta+a")
        self.page.keyboard.insert_text(text)
        self.page.keyboard.press("Shift+Enter")
        self.page.wait_for_function(IDLE)

    def explorer(self, number: int) -> Live:
        """The explorer that a cell shows."""
        return Live(self.page, self.cell(number))


class Live:
    """An explorer in the page."""

    def __init__(self, page: Any, where: Any) -> None:
        self.page, self.where = page, where
        self.image = where.locator("img.widget-image")
        self.image.wait_for()

    def handle(self, label: str) -> Any:
        """What of a slider takes the keyboard's focus; its label belongs to the box beside it."""
        name = self.page.locator(".widget-label", has_text=label)
        return self.where.locator(".widget-hbox", has=name).locator(".noUi-handle")

    def press(self, label: str, key: str) -> None:
        self.handle(label).focus()
        self.page.keyboard.press(key)

    def tabulator_reaches(self, kinds: str, first: Any) -> int:
        """How many controls of these kinds take the focus, one after the other, from the first one on."""
        place = f"() => [...document.querySelectorAll('{kinds}')].indexOf(document.activeElement.closest('{kinds}'))"
        reached = set()
        first.focus()
        for _ in range(2 * self.where.locator(kinds).count()):
            reached.add(self.page.evaluate(place))
            self.page.keyboard.press("Tab")
        return len(reached - {-1})

    def pixels(self) -> str:
        return self.image.evaluate(PIXELS)

    def text(self) -> str:
        """The numbers below the picture."""
        return self.where.locator(".widget-html").last.inner_text()

    def status(self) -> str:
        return self.where.locator(".widget-html").first.inner_text()

    def until(self, true: Any, what: str) -> None:
        """Wait until something is true of the page."""
        end = time.monotonic() + PATIENCE
        while not true():
            assert time.monotonic() < end, f"{what} did not come"
            self.page.wait_for_timeout(20)


def milliseconds(page: Any, handle: Any, keys: list[str], pause: int = 120) -> list[float]:
    """From each key press to the new pixels of a picture, in the browser's own time."""
    page.evaluate(STOPWATCH)
    handle.focus()
    for key in keys:
        page.keyboard.press(key)
        page.wait_for_function("() => !window.stopwatch.start")
        page.wait_for_timeout(pause)
    return page.evaluate("() => window.stopwatch.times.splice(0)")


def file_name(text: str) -> str:
    return re.sub(r"\W+", "-", text).strip("-")
