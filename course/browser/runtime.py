"""onnxruntime-web, which runs ONNX networks in a browser: fetched from npm once, and only the files that are needed."""

from __future__ import annotations

import errno
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from kdlib.files import atomic_write

PACKAGE = "onnxruntime-web"
OLDEST = (1, 30)
# The build without WebGPU: half the size, and the networks here are too small to gain from a GPU.
SCRIPT, GLUE, WASM = "ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"
TIMEOUT = 900  # seconds for 33 MB


def cache_dir() -> Path:
    """The folder of what is made or fetched once, ~/.cache/kdlib/browser; OSError for a user without a home folder."""
    try:
        return Path.home() / ".cache" / "kdlib" / "browser"
    except RuntimeError as error:
        raise OSError(
            f"There is no home folder to keep the page's files in ({error}). Set HOME to a folder."
        ) from error


def runtime_files(cache: Path) -> tuple[str, dict[str, Path]]:
    """onnxruntime-web's version, and its script, glue code and wasm by file name; from npm if `cache` has none.

    Raises FileNotFoundError without npm, OSError if npm cannot fetch it, ValueError if the package lacks these files.
    """
    kept = {version: folder for folder in cache.glob(f"{PACKAGE}-*") if (version := _version(folder.name))}
    usable = [version for version, folder in kept.items() if version >= OLDEST and not _missing(folder)]
    folder = kept[max(usable)] if usable else _fetch(cache)
    return folder.name.removeprefix(f"{PACKAGE}-"), {name: folder / name for name in (SCRIPT, GLUE, WASM)}


def _version(name: str) -> tuple[int, ...]:
    """(1, 30, 0) of "onnxruntime-web-1.30.0"; () of any other name."""
    found = re.fullmatch(rf"{PACKAGE}-(\d+)\.(\d+)\.(\d+)", name)
    return tuple(map(int, found.groups())) if found else ()


def _missing(folder: Path) -> list[str]:
    return [name for name in (SCRIPT, GLUE, WASM) if not (folder / name).is_file()]


def _fetch(cache: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError(
            errno.ENOENT,
            "The page needs onnxruntime-web, which npm fetches once, and there is no npm here. Install Node.js, which "
            "brings it (nodejs.org; Debian and Ubuntu: sudo apt install npm; macOS: brew install node), and run this "
            "again",
        )
    print(f"Fetching {PACKAGE} from npm, once (33 MB)", flush=True)
    with tempfile.TemporaryDirectory(prefix="kdlib-npm-") as temporary:
        return _unpack(_pack(npm, Path(temporary)), cache)


def _pack(npm: str, folder: Path) -> Path:
    """The package as npm's registry has it, its checksum compared by npm."""
    wanted = f"{PACKAGE}@^{'.'.join(map(str, OLDEST))}.0"
    command = [npm, "pack", wanted, "--json", "--fetch-retries=1", "--fetch-retry-mintimeout=1000"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, encoding="utf-8", timeout=TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise OSError(errno.ETIMEDOUT, _failure(f"no answer within {TIMEOUT} seconds")) from error
    packages = sorted(folder.glob("*.tgz"))
    if done.returncode or not packages:
        raise OSError(errno.EIO, _failure(_reason(done.stdout, done.stderr)))
    return packages[0]


def _failure(reason: str) -> str:
    return (
        f"npm could not fetch {PACKAGE} ({reason}). Check the network, or copy {cache_dir()} from a machine on which "
        "this command ran"
    )


def _reason(output: str, errors: str) -> str:
    """npm's own words in one line, in whichever of its two forms they come."""
    try:
        return " ".join(str(json.loads(output)["error"]["summary"]).split())
    except (ValueError, KeyError, TypeError):
        lines = [re.sub(r"^npm (error|ERR!) ?", "", line).strip() for line in errors.splitlines()]
        return next((line for line in lines if line and not line.startswith(("code", "errno", "syscall"))), "no reason")


def _unpack(package: Path, cache: Path) -> Path:
    """Copy the needed files into a folder that is named after the version."""
    try:
        with tarfile.open(package) as archive:
            version = json.loads(_read(archive, "package/package.json"))["version"]
            if not _version(f"{PACKAGE}-{version}"):
                raise ValueError(f"its version is {version!r}")
            contents = {name: _read(archive, f"package/dist/{name}") for name in (SCRIPT, GLUE, WASM)}
    except (tarfile.TarError, KeyError, ValueError, EOFError) as error:
        raise ValueError(
            f"npm's package {PACKAGE} is not as expected ({error}): {SCRIPT}, {GLUE} and {WASM} are looked for in "
            "dist/. Update kdlib, or fetch it again."
        ) from error
    folder = cache / f"{PACKAGE}-{version}"
    for name, content in contents.items():
        with atomic_write(folder / name) as temporary:
            temporary.write_bytes(content)
    return folder


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    """The contents of one file of the archive; KeyError if it is not there."""
    file = archive.extractfile(name)
    if file is None:
        raise KeyError(f"{name} is no file")
    return file.read()
