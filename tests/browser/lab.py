"""JupyterLab in a real browser: a server on a folder of copies, and a page on which a notebook is open."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

PATIENCE = float(os.environ.get("KDLIB_PATIENCE", "120"))  # seconds for whatever is waited for

SETTINGS = {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True}

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
    """JupyterLab on a folder, on this machine only, with a token, on a free port, without the learner's settings."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "notebooks"
        self.token = secrets.token_hex(16)
        self.log = folder / "jupyterlab.log"
        self._home = folder / "home"
        self.folder.mkdir()
        place = self._home / "settings" / "@jupyterlab" / "apputils-extension"
        place.mkdir(parents=True)
        (place / "notification.jupyterlab-settings").write_text(json.dumps(SETTINGS))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self._process = self._started()

    def _started(self) -> subprocess.Popen[bytes]:
        options = {
            "ServerApp.ip": "127.0.0.1",
            "ServerApp.port": self.port,
            "ServerApp.port_retries": 0,
            "ServerApp.open_browser": False,
            "ServerApp.root_dir": self.folder,
            "ServerApp.allow_root": hasattr(os, "geteuid") and os.geteuid() == 0,
            "IdentityProvider.token": self.token,
            "LabApp.expose_app_in_browser": True,
            "LabApp.news_url": "",
            "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
        }
        own = {
            "JUPYTER_CONFIG_DIR": "config",
            "JUPYTER_DATA_DIR": "data",
            "JUPYTER_RUNTIME_DIR": "runtime",
            "JUPYTERLAB_SETTINGS_DIR": "settings",
            "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
            "IPYTHONDIR": "ipython",
            "KDLIB_PROGRESS": "progress.json",
        }
        environment = {**os.environ, **{name: str(self._home / where) for name, where in own.items()}}
        environment.pop("MPLBACKEND", None)
        command = [sys.executable, "-m", "jupyterlab", *(f"--{name}={value}" for name, value in options.items())]
        with self.log.open("wb") as log:
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=self.folder)

    def wait(self) -> None:
        """Return when the server answers; RuntimeError with its last words if it does not."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.address}/api/status?token={self.token}", timeout=5):
                    return
            except OSError:
                time.sleep(0.5)
        raise RuntimeError(f"JupyterLab did not start:\n{self.log.read_text()[-3000:]}")

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()

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

    def __init__(self, page: Any, lab: Lab, name: str) -> None:
        self.page = page
        page.goto(f"{lab.address}/lab/tree/{name}?token={lab.token}&reset")
        page.locator(".jp-Notebook").wait_for()
        page.wait_for_function(IDLE)

    def run_all(self) -> None:
        """Run every cell, from top to bottom, and wait for the end."""
        self.page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
        self.page.wait_for_function(IDLE)
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
        """What of a slider takes the keyboard's focus."""
        return self.where.locator(".widget-hslider", has_text=label).locator(".noUi-handle")

    def press(self, label: str, key: str) -> None:
        self.handle(label).focus()
        self.page.keyboard.press(key)

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
