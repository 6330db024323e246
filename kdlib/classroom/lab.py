"""JupyterLab on the first lesson, for this machine only: make lab, or python -m kdlib.classroom.lab.

Whatever follows goes to Jupyter and wins over what is set here: --no-browser, or --ServerApp.port=9000. The learner's
own settings (theme, fonts, shortcuts) count and stay as they are. What is set here, layout included, lives in a folder
that is removed at the end.
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

from kdlib.classroom import notebooks

# Defaults of settings: a learner who has chosen otherwise in JupyterLab keeps that.
SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
}
# No message about a build, and no check for one: everything that the course uses comes built.
PAGE = {"page_config_data": {"buildAvailable": False, "buildCheck": False}}


def options(lesson: Path, token: str, place: Path) -> dict[str, object]:
    """What JupyterLab is told, by the names of its options, to show a lesson; its own files go to a place."""
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
        "LabApp.app_settings_dir": place / "settings",
        "LabApp.workspaces_dir": place / "workspaces",
        "Application.log_level": "ERROR",  # Jupyter tells of every step
        # A kernel warns that it can be overheard, if only on this very machine; so it is not.
        "KernelManager.transport_encryption": "auto" if zmq.has("curve") else "disabled",
    }


def launch(lesson: Path, given: Sequence[str], place: Path) -> None:
    """Start JupyterLab on a lesson, print its address, and return when it was stopped."""
    from jupyterlab.labapp import LabApp

    token = secrets.token_hex(24)
    wanted = {f"--{name}": value for name, value in options(lesson, token, place).items()}
    wanted = {name: value for name, value in wanted.items() if not any(one.startswith(f"{name}=") for one in given)}
    for name in ("settings", "workspaces"):
        (place / name).mkdir()
    (place / "settings" / "overrides.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
    server = LabApp.initialize_server([*(f"{name}={value}" for name, value in wanted.items()), *given])
    address = server.local_url.partition("?")[0]
    print(f"JupyterLab (Ctrl-C stops it): {address}?token={server.identity_provider.token}", flush=True)
    server.start()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 if all is well, 1 if not."""
    lessons = notebooks.every()
    if not lessons:
        return _complain(
            f"There are no lessons in {notebooks.FOLDER}. They are in the repository, not in the package: clone it, "
            "and run make lab there."
        )
    if importlib.util.find_spec("jupyterlab") is None:
        return _complain("JupyterLab is not installed. Run make lab, or: pip install --editable '.[course]'")
    with tempfile.TemporaryDirectory(prefix="kdlib-lab-") as place:
        launch(lessons[0], sys.argv[1:] if arguments is None else arguments, Path(place))
    return 0


def _complain(what: str) -> int:
    print(what, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
