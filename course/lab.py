"""Starts JupyterLab on the first lesson, reachable from this machine only: make lab, or python -m course.lab.

Further arguments go to Jupyter and override what is set here: --no-browser, or --ServerApp.port=9000. The learner's own
settings (theme, fonts, shortcuts) apply and do not change. What is set here, layout included, is stored in a temporary
folder.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from kdlib.allocator import keep_freed_memory
from kdlib.errors import escape_unprintable

# Default settings: what a learner has set in JupyterLab has priority.
SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
}
# No check and no message about a build: the course uses no extension that needs one.
PAGE = {"page_config_data": {"buildAvailable": False, "buildCheck": False}}


def server_options(lesson: Path, token: str, folder: Path) -> dict[str, object]:
    """JupyterLab's options, by name, that open a lesson; folder: for its settings and workspaces."""
    import zmq

    root = lesson.parents[1]
    return {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.root_dir": root,
        "ServerApp.allow_root": hasattr(os, "geteuid") and os.geteuid() == 0,  # as in containers
        "ServerApp.tornado_settings": PAGE,
        # A browser from the snap store cannot read the hidden folder through which Jupyter passes it the address.
        "ServerApp.use_redirect_file": shutil.which("snap") is None,
        "IdentityProvider.token": token,
        "LabApp.default_url": f"/lab/tree/{lesson.relative_to(root).as_posix()}",
        "LabApp.app_settings_dir": folder / "settings",
        "LabApp.workspaces_dir": folder / "workspaces",
        "Application.log_level": "ERROR",  # else Jupyter logs every step
        # Else the kernel warns about unencrypted local ports.
        "KernelManager.transport_encryption": "auto" if zmq.has("curve") else "disabled",
    }


def launch(lesson: Path, arguments: Sequence[str], folder: Path) -> None:
    """Start JupyterLab on a lesson, print its address, and return when it is stopped."""
    from jupyterlab.labapp import LabApp

    # For its terminals: python, kdlib and pip are those of this environment. Unresolved, since that is often a link.
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    token = secrets.token_hex(24)
    defaults = {f"--{name}": value for name, value in server_options(lesson, token, folder).items()}
    given = (argument.lstrip("-").partition("=")[0] for argument in arguments if argument.startswith("--"))
    overridden = {f"--{LabApp.aliases.get(name, name)}" for name in given}  # --ip is ServerApp.ip
    options = [f"{name}={value}" for name, value in defaults.items() if name not in overridden]
    for name in ("settings", "workspaces"):
        (folder / name).mkdir()
    (folder / "settings" / "overrides.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
    server = LabApp.initialize_server([*options, *arguments])
    address = server.local_url.partition("?")[0]
    print(f"JupyterLab (Ctrl-C stops it): {address}?token={server.identity_provider.token}", flush=True)
    server.start()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns 0, or 1 if JupyterLab cannot be started."""
    escape_unprintable()
    keep_freed_memory()  # its kernels as well
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        print(f"{__doc__}\nFurther options go to Jupyter: {Path(sys.executable).parent / 'jupyter'} lab --help-all")
        return 0
    if importlib.util.find_spec("jupyterlab") is None:
        return _print_error('JupyterLab is not installed. Run make lab, or: pip install --editable ".[course]"')
    from course import notebooks  # needs nbformat, which comes with JupyterLab

    lessons = notebooks.list_notebooks()
    if not lessons:
        return _print_error(notebooks.no_lessons())
    with tempfile.TemporaryDirectory(prefix="kdlib-lab-") as folder:
        launch(lessons[0], arguments, Path(folder))
    return 0


def _print_error(message: str) -> int:
    print(message, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
