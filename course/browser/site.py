"""Everything that the page consists of, by its address: its own files, the runtime, the networks and test pictures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from course.browser.networks import Network
from course.browser.runtime import GLUE, SCRIPT, WASM
from kdlib.data import DataModule
from kdlib.errors import few
from kdlib.files import atomic_write
from kdlib.schemas import read_json

Site = Mapping[str, Path | bytes]  # an address such as "/index.html" to a file or to its contents

PAGE = Path(__file__).parent / "page"
CONTENTS = "contents.json"  # what the page consists of, which it reads when it is opened
PICTURES_PER_CLASS = 4


def build_site(
    teacher: Network, students: Sequence[Network], fashion: DataModule, version: str, runtime: Mapping[str, Path]
) -> Site:
    """The page with these networks; version and runtime: onnxruntime-web's, as `runtime_files` gives them."""
    pictures, labels = sample_pictures(fashion)
    pixels = f"/files/pictures-{hashlib.sha256(pictures).hexdigest()[:12]}.bin"
    folder = f"/files/onnxruntime-web-{version}"
    networks = [teacher, *students]
    page = {f"/{path.name}": path for path in _page_files()}
    contents = {
        "page": [*(url.lstrip("/") for url in page), CONTENTS],  # what the service worker keeps
        "classes": list(fashion.classes),
        "mean": fashion.test.mean[0],
        "std": fashion.test.std[0],
        "pictures": {**_asset(pixels, pictures), "labels": labels},
        "runtime": {
            "version": version,
            "script": _asset(f"{folder}/{SCRIPT}", runtime[SCRIPT]),
            "glue": _asset(f"{folder}/{GLUE}", runtime[GLUE]),
            "wasm": _asset(f"{folder}/{WASM}", runtime[WASM]),
        },
        "networks": [_description(one) for one in networks],  # the teacher first
    }
    return {
        **page,
        f"/{CONTENTS}": json.dumps(contents, indent=1).encode(),
        pixels: pictures,
        **{f"{folder}/{name}": path for name, path in runtime.items()},
        **{one.url(precision): path for one in networks for precision, path in one.files.items()},
    }


def sample_pictures(fashion: DataModule) -> tuple[bytes, list[int]]:
    """The first four test images of each class, the classes in turn: their bytes, 784 a picture, and their labels."""
    labels = fashion.test.labels
    by_class = [torch.nonzero(labels == label).flatten()[:PICTURES_PER_CLASS] for label in range(fashion.num_classes)]
    positions = torch.stack(by_class).T.flatten()
    images = fashion.test.images[positions]  # type: ignore[attr-defined]  # Fashion-MNIST's are in memory
    return images.contiguous().numpy().tobytes(), labels[positions].tolist()


def _description(network: Network) -> dict[str, Any]:
    return {
        "name": network.name,
        "parameters": network.parameters,
        "macs": network.macs,
        "testAccuracy": network.test_accuracy,
        **{precision: _asset(network.url(precision), path) for precision, path in network.files.items()},
    }


def _asset(url: str, content: Path | bytes) -> dict[str, Any]:
    """An address, relative to the page so that it may lie in any folder of a host, and the size in bytes."""
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    return {"url": url.lstrip("/"), "bytes": size}


def _page_files() -> list[Path]:
    """The page's own files: HTML, CSS and JavaScript."""
    return sorted(path for path in PAGE.iterdir() if path.is_file())


def check_folder(folder: Path) -> None:
    """Raise ValueError for a folder in which `write_site` would replace files that it did not write."""
    if _holds_page(folder):
        return
    there = [path.name for path in _page_files() if _differs(folder / path.name, path)]
    there += [CONTENTS] * (folder / CONTENTS).is_file()
    if there:
        raise ValueError(
            f"{folder} holds files that this command did not write and would replace ({few(there)}). Choose another "
            "folder with --out, such as a new one, or move them away."
        )


def _holds_page(folder: Path) -> bool:
    """Whether the contents in a folder are those of a page, as `build_site` describes one."""
    try:
        contents = read_json((folder / CONTENTS).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(contents, dict) and {"page", "runtime", "networks"} <= contents.keys()


def _differs(there: Path, wanted: Path) -> bool:
    """Whether a file is there that holds something else; one that is the same may come from a call that was stopped."""
    return there.is_file() and there.read_bytes() != wanted.read_bytes()


def write_site(site: Site, folder: Path) -> None:
    """Write the page into a folder, for any host of static files; OSError, with the reason, if that fails."""
    for url, content in site.items():
        with atomic_write(folder / url.lstrip("/")) as temporary:
            temporary.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
