"""`make browser` without a browser: what is prepared, what the server gives away, and what users are told."""

from __future__ import annotations

import errno
import http.client
import io
import json
import os
import re
import shlex
import shutil
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from course.browser import __main__ as command
from course.browser import networks, runtime, site
from course.browser.networks import Network
from course.browser.server import Server
from kdlib import models
from kdlib.data import DataModule

pytest.importorskip("onnxruntime")  # of the extra `export`

NPM = shutil.which("npm")
PARTS = (runtime.SCRIPT, runtime.GLUE, runtime.WASM)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user who has never called make browser, and for whom npm cannot be found."""
    folder = tmp_path / "home"
    folder.mkdir()
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(folder))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return folder


def put_runtime(cache: Path, version: str, parts: tuple[str, ...] = PARTS) -> Path:
    """Stand-ins for the files of onnxruntime-web."""
    folder = cache / f"onnxruntime-web-{version}"
    folder.mkdir(parents=True)
    for name in parts:
        (folder / name).write_text(f"{name} {version}")
    return folder


def put_npm(folder: Path, script: str) -> None:
    """An npm that does what a test needs."""
    folder.mkdir(exist_ok=True)
    npm = folder / "npm"
    # Not "#!PYTHON": there the path of a Python would end at its first blank.
    npm.write_text(f"#!/bin/sh\nexec {shlex.join([sys.executable, '-c', script])}\n")
    npm.chmod(npm.stat().st_mode | stat.S_IXUSR)


def package(path: Path, version: str = "1.31.0", parts: tuple[str, ...] = PARTS) -> None:
    with tarfile.open(path, "w:gz") as archive:
        files = {"package.json": json.dumps({"version": version}), **{f"dist/{name}": name for name in parts}}
        for name, text in files.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))


# ---- what users are told


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one sentence on stderr with which the command ends."""
    with pytest.raises(SystemExit) as ended:
        command.main([str(argument) for argument in arguments])
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert len(lines) == 1, lines
    assert lines[0].startswith("kdlib: ")
    assert "was not expected" not in lines[0]
    return lines[0]


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


def test_a_port_that_is_taken(taken: int, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"Port {taken} is taken by another program. Take another: --port 0" in run(capsys, "--port", taken)
    assert not list(home.iterdir())  # told before anything was made


@pytest.mark.skipif(os.name == "nt", reason="Windows does not keep the port of a server that has ended")
def test_a_port_that_a_server_has_just_left_is_taken_again() -> None:
    with Server("127.0.0.1", 0) as one, socket.create_connection(("127.0.0.1", one.port)) as client:
        connection, _ = one.get_request()
        connection.close()  # the side that closes first keeps the port for a while
        assert client.recv(1) == b""
    with Server("127.0.0.1", one.port) as again:
        assert again.port == one.port


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "-1"], "port is a whole number of at least 0"),
        (["--port", "65536"], "port is a whole number of at most 65535"),
        (["--port", "http"], "invalid int value: 'http'"),
        (["--students", "x"], "unrecognized arguments: --students x"),
        (["--host", "no.such.machine.invalid", "--port", "0"], "'no.such.machine.invalid' is no address of this"),
        (["--host", "203.0.113.7", "--port", "0"], "'203.0.113.7' is no address of this machine"),
        (["--host", "a" * 80, "--port", "0"], "is no address of this machine"),
        (["--teacher", "resnet51-fashion", "--port", "0"], "Did you mean 'resnet50-fashion'"),
        (["--teacher", "none/x.safetensors", "--port", "0"], "There is no file none/x.safetensors"),
    ],
)
def test_options_that_do_not_fit(
    arguments: list[str], words: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in run(capsys, *arguments)
    assert not list(home.iterdir())


def damaged(path: Path, **options: Any) -> None:
    models.save(models.build("resnet8", **{"num_classes": 10, "in_channels": 1, "seed": 0, **options}), path)


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a text": (lambda path: path.write_text("no model"), "is not a readable safetensors file"),
    "empty": (lambda path: path.write_bytes(b""), "is not a readable safetensors file"),
    "a pickle": (lambda path: torch.save({"weight": torch.zeros(2)}, path), "is not a readable safetensors file"),
    "colour": (lambda path: damaged(path, in_channels=3), "cannot take such an image"),
    "other pixels": (
        lambda path: models.save(models.build("article-student", num_classes=10, in_channels=1, image_size=32), path),
        "cannot take such an image",
    ),
    "a hundred classes": (lambda path: damaged(path, num_classes=100), "gives (100,) for an image"),
    "other classes": (
        lambda path: models.save(
            models.build("resnet8", num_classes=10, in_channels=1), path, classes=[f"digit {n}" for n in range(10)]
        ),
        "knows other classes (digit 0, digit 1, digit 2, ...)",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILES)
def test_files_that_are_no_student(kind: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write, words = FILES[kind]
    path = tmp_path / "student.safetensors"
    write(path)
    said = run(capsys, "--teacher", "resnet20-fashion", "--student", path, "--port", 0)
    assert words in said
    assert str(path) in said
    assert not list(home.iterdir())


ARGUMENTS = ("--teacher", "resnet20-fashion", "--port", 0)


def test_without_npm(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no npm here. Install Node.js" in run(capsys, *ARGUMENTS)


# What an npm says on its standard output and on stderr, what package it leaves, and what the user is told.
NPMS: dict[str, tuple[str, str, Callable[[Path], object] | None, str]] = {
    "no network, npm 11": (
        json.dumps({"error": {"code": "ENOTFOUND", "summary": "request failed,\nno host"}}),
        "",
        None,
        "npm could not fetch onnxruntime-web (request failed, no host). Check the network",
    ),
    "no network, npm 6": (
        "",
        "npm ERR! code ENOTFOUND\nnpm ERR! errno ENOTFOUND\nnpm ERR! no host\n",
        None,
        "npm could not fetch onnxruntime-web (no host). Check the network",
    ),
    "not a word": ("", "", None, "npm could not fetch onnxruntime-web (no reason)"),
    "a broken package": ("", "", lambda path: path.write_bytes(b"broken"), "onnxruntime-web is not as expected"),
    "other files": ("", "", lambda path: package(path, parts=()), "onnxruntime-web is not as expected"),
    "no version": ("", "", lambda path: package(path, version="../x"), "onnxruntime-web is not as expected"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", NPMS)
def test_an_npm_that_fails(kind: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, errors, write, words = NPMS[kind]
    script = f"import shutil, sys; print({output!r}); print({errors!r}, file=sys.stderr)\n"
    if write is not None:
        write(tmp_path / "made.tgz")
        script += f"shutil.copy({str(tmp_path / 'made.tgz')!r}, 'onnxruntime-web.tgz')\n"
    put_npm(tmp_path / "bin", script)
    assert words in run(capsys, *ARGUMENTS)
    assert not list(tmp_path.rglob("*.wasm"))


@pytest.mark.slow
@pytest.mark.skipif(NPM is None, reason="There is no npm.")
def test_the_real_npm_without_its_registry(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", os.defpath + os.pathsep + str(Path(str(NPM)).parent))
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    said = run(capsys, *ARGUMENTS)
    assert "npm could not fetch onnxruntime-web (" in said
    assert "no reason" not in said
    assert "ECONNREFUSED" in said


def test_without_the_exporter(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    put_runtime(home / ".cache" / "kdlib" / "browser", "1.30.0")
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert 'pip install "kdlib[export]"' in run(capsys, *ARGUMENTS)


def test_without_a_home_folder(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(runtime.Path, "home", no_home)
    assert "There is no home folder to keep the page's files in" in run(capsys, *ARGUMENTS)


def test_a_home_that_cannot_be_written(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package(tmp_path / "good.tgz")
    put_npm(tmp_path / "bin", f"import shutil; shutil.copy({str(tmp_path / 'good.tgz')!r}, 'one.tgz')")
    (home / ".cache").write_text("a file where a folder is needed")
    assert "Could not write" in run(capsys, *ARGUMENTS)


# ---- onnxruntime-web


def test_npms_package_is_fetched_once_and_only_three_of_its_files_are_kept(home: Path, tmp_path: Path) -> None:
    package(tmp_path / "good.tgz", "1.31.2")
    put_npm(tmp_path / "bin", f"import shutil; shutil.copy({str(tmp_path / 'good.tgz')!r}, 'one.tgz')")
    cache = runtime.cache_dir()
    first = runtime.runtime_files(cache)
    (tmp_path / "bin" / "npm").unlink()
    version, files = first
    assert runtime.runtime_files(cache) == first
    assert version == "1.31.2"
    assert {name: path.read_text() for name, path in files.items()} == {name: name for name in PARTS}
    assert sorted(path.name for path in cache.rglob("*") if path.is_file()) == sorted(PARTS)


def test_the_newest_complete_version_is_taken(tmp_path: Path) -> None:
    for version in ("1.9.0", "1.30.0", "1.100.0"):
        put_runtime(tmp_path, version)
    put_runtime(tmp_path, "1.200.0", PARTS[:2])
    version, files = runtime.runtime_files(tmp_path)
    assert version == "1.100.0"
    assert files[runtime.WASM].read_text() == f"{runtime.WASM} 1.100.0"


def test_an_old_version_is_not_taken(home: Path, tmp_path: Path) -> None:
    put_runtime(tmp_path, "1.29.9")
    with pytest.raises(FileNotFoundError, match="there is no npm"):
        runtime.runtime_files(tmp_path)


# ---- the site


@pytest.fixture
def small(tmp_path: Path, fashion: DataModule) -> site.Site:
    """A site whose networks are stand-ins: bytes, which a server hands out as well."""
    made = []
    for number, name in enumerate(("teacher/one", "student")):
        files = {kind: tmp_path / f"{number}-{kind}.onnx" for kind in ("float", "int8")}
        for kind, path in files.items():
            path.write_bytes(f"{name} {kind}".encode())
        made.append(Network(name, files, 100 - number, 1000, None))
    folder = put_runtime(tmp_path, "1.30.0")
    return site.build_site(made[0], made[1:], fashion, "1.30.0", {name: folder / name for name in PARTS})


def test_the_page_is_told_of_everything_that_there_is(small: site.Site, fashion: DataModule) -> None:
    contents = json.loads(small["/contents.json"])

    def assets(value: Any) -> Iterator[dict[str, Any]]:
        if isinstance(value, dict) and "url" in value:
            yield value
        for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            yield from assets(part)

    told = {f"/{one['url']}": one["bytes"] for one in assets(contents)}
    sizes = {url: len(one) if isinstance(one, bytes) else one.stat().st_size for url, one in small.items()}
    assert {**told, **{f"/{name}": sizes[f"/{name}"] for name in contents["page"]}} == sizes
    assert contents["classes"] == list(fashion.classes)
    assert (contents["mean"], contents["std"]) == (0.2860, 0.3530)
    assert [one["name"] for one in contents["networks"]] == ["teacher/one", "student"]


def test_the_name_of_a_file_changes_with_its_contents(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    urls = set()
    for content in (b"one", b"two"):
        path.write_bytes(content)
        urls.add(Network("a b/ü", {"float": path}, 1, 1, None).url("float"))
    assert len(urls) == 2
    assert all(url.startswith("/files/a-b-float-") for url in urls)


@pytest.mark.slow
def test_the_pictures_are_those_of_the_test_set(fashion: DataModule) -> None:
    pixels, labels = site.sample_pictures(fashion)
    assert labels == 4 * list(range(10))
    images = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(40, 1, 28, 28)
    for image, label in zip(images, labels, strict=True):
        found = (fashion.test.images == image).flatten(1).all(1).nonzero().flatten()
        assert fashion.test.labels[found].tolist() == [label]


def test_a_folder_holds_what_the_server_gives(small: site.Site, tmp_path: Path) -> None:
    out = tmp_path / "out"
    site.write_site(small, out)
    written = {f"/{path.relative_to(out).as_posix()}": path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert written == {url: one if isinstance(one, bytes) else one.read_bytes() for url, one in small.items()}


@pytest.mark.parametrize("contents", [None, "[]", '{"page": []}', "not JSON"])
def test_a_page_of_the_users_own_is_not_replaced(
    contents: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "prepare", lambda *_: pytest.fail("the folder is looked at before the work"))
    written = {"index.html": b"mine", "notes.txt": b"mine", "sw.js": (site.PAGE / "sw.js").read_bytes()}
    written |= {} if contents is None else {"contents.json": contents.encode()}
    for name, content in written.items():
        (tmp_path / name).write_bytes(content)
    said = run(capsys, "--out", tmp_path)
    assert "index.html" in said
    assert ("contents.json" in said) == (contents is not None)
    assert not {"notes.txt", "sw.js"} & set(re.findall(r"[\w.]+", said))  # nothing of these would be lost
    assert "another folder" in said
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == written


def test_a_page_of_this_command_is_written_anew(
    small: site.Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "prepare", lambda *_: small)
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")  # a folder need not be empty
    command.main(["--out", str(out)])
    (out / "index.html").write_text("of an older version")
    command.main(["--out", str(out)])
    assert "The page is in" in capsys.readouterr().out
    assert (out / "index.html").read_bytes() == (site.PAGE / "index.html").read_bytes()
    (out / "contents.json").unlink()  # as where the first call was interrupted
    command.main(["--out", str(out)])


def test_the_page_names_no_other_host() -> None:
    for path in site.PAGE.iterdir():
        text = path.read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(r"""\w+:?//\w|["'(]//\w""", text), path


def test_students_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    names = ["resnet20-fashion", str(tmp_path / "a" / "best.safetensors"), str(tmp_path / "b" / "best.safetensors")]
    assert networks.labels_of(names) == ["resnet20-fashion", "a/best", "b/best"]
    assert networks.labels_of([str(tmp_path / "small.safetensors")]) == ["small"]
    assert networks.labels_of([str(tmp_path / "distill" / "student.safetensors")]) == ["distill/student"]


@pytest.mark.slow
def test_a_network_is_exported_once_and_again_when_its_weights_change(
    tmp_path: Path, fashion: DataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With stand-ins for the exporters; tests/browser runs what the real ones write."""
    written: list[tuple[Path, tuple[int, ...]]] = []

    def write(model: torch.nn.Module, path: Path, images: torch.Tensor) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
        written.append((path, tuple(images.shape)))

    monkeypatch.setattr(networks.export, "to_onnx", write)
    monkeypatch.setattr(networks.export, "to_onnx_int8", write)
    path, made = tmp_path / "student.safetensors", []
    for seed in (0, 0, 1):
        model = models.build("resnet8", num_classes=10, in_channels=1, seed=seed)
        models.save(model, path, test_accuracy=0.5)
        made.append(networks.export_network(str(path), "x", fashion, tmp_path / "cache"))
    assert made[0] == made[1]
    assert not set(made[0].files.values()) & set(made[2].files.values())
    assert [path for path, _ in written] == [*made[0].files.values(), *made[2].files.values()]
    assert [shape[0] for _, shape in written] == 2 * [2, networks.CALIBRATION_IMAGES]
    assert made[0].test_accuracy == 0.5
    assert made[0].parameters == sum(parameter.numel() for parameter in model.parameters())


# ---- the server


@pytest.fixture
def server(small: site.Site) -> Iterator[Server]:
    with Server("127.0.0.1", 0) as one:
        one.site = small
        thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield one
        one.shutdown()
        thread.join()


def ask(server: Server, url: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    """The status, headers and body of an answer; the address goes out as it stands."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.putrequest(method, url, skip_host=True)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), body


def test_everything_is_handed_out_with_its_type(server: Server, small: site.Site) -> None:
    for url, content in small.items():
        status, headers, body = ask(server, url)
        assert status == 200
        assert body == (content if isinstance(content, bytes) else content.read_bytes())
        kept = "immutable" in headers["Cache-Control"]
        assert kept == url.startswith("/files/")
        assert headers["Content-Length"] == str(len(body))
    assert ask(server, "/")[2] == ask(server, "/index.html?x=1")[2] == (site.PAGE / "index.html").read_bytes()
    types = {Path(url).suffix: ask(server, url)[1]["Content-Type"].partition(";")[0] for url in small}
    assert types[".js"] == types[".mjs"] == "text/javascript"  # browsers refuse modules of any other type
    assert types[".wasm"] == "application/wasm"
    assert types[".css"] == "text/css"


def test_head_gives_the_length_and_nothing_more(server: Server) -> None:
    status, headers, body = ask(server, "/index.html", "HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) == (site.PAGE / "index.html").stat().st_size


@pytest.mark.parametrize(
    "url",
    [
        *("/../__main__.py", "/..%2f__main__.py", "/%2e%2e/__main__.py", "/files/../../server.py", "//etc/passwd"),
        *(
            "/../../../../../../etc/passwd",
            "/files/",
            "/files",
            "/page/index.html",
            "/.",
            "/..",
            "/%00",
            "/index.html/",
        ),
        *("../../etc/passwd", "file:///etc/passwd", "/..\\..\\etc\\passwd", "/" + "a" * 5000),
    ],
)
def test_nothing_else_is_handed_out(url: str, server: Server) -> None:
    status, _, body = ask(server, url)
    assert status == 404
    assert b"root:" not in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_can_be_sent(method: str, server: Server) -> None:
    assert ask(server, "/index.html", method)[0] == 501


def test_a_reader_that_goes_away_disturbs_nobody(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    large = tmp_path / "large.onnx"
    large.write_bytes(bytes(30_000_000))
    server.site = {**server.site, "/files/large.onnx": large}
    with socket.create_connection(("127.0.0.1", server.port)) as away:
        away.sendall(b"GET /files/large.onnx HTTP/1.1\r\n\r\n")
        away.recv(100)
    time.sleep(0.2)
    assert ask(server, "/index.html")[0] == 200
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="Only Linux gives every machine the address 127.0.0.2.")
def test_only_what_was_asked_for_can_be_reached() -> None:
    def reached(host: str, address: str) -> bool:
        with Server(host, 0) as one, socket.socket() as client:
            client.settimeout(5)
            return client.connect_ex((address, one.port)) == 0

    default = command.parser().parse_args([]).host
    assert reached(default, "127.0.0.1")
    assert not reached(default, "127.0.0.2")
    assert reached("0.0.0.0", "127.0.0.2")


def test_a_warning_comes_only_where_others_can_open_the_page() -> None:
    with Server("127.0.0.1", 0) as one:
        assert (
            command.announcement(one) == f"Teacher and student (Ctrl-C stops the server): http://127.0.0.1:{one.port}/"
        )
    with Server("localhost", 0) as one:
        assert "Warning" not in command.announcement(one)
    with Server("0.0.0.0", 0) as one:
        address, warning = command.announcement(one).splitlines()
        assert address.endswith(f":{one.port}/")
        assert "0.0.0.0" not in address
        assert "everybody in this network" in warning


def test_ipv6() -> None:
    try:
        server = Server("::1", 0)
    except OSError as error:
        assert error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # noqa: PT017
        pytest.skip("This machine has no IPv6.")
    with server:
        assert command.announcement(server).endswith(f"http://[::1]:{server.port}/")


@pytest.mark.skipif(shutil.which("make") is None, reason="There is no make.")
def test_make_browser_starts_what_is_tested_here() -> None:
    root = site.PAGE.parents[2]
    make = ["make", "--no-print-directory", "-n", "browser"]
    plain = subprocess.run(make, cwd=root, capture_output=True, text=True, check=True).stdout
    assert plain.splitlines()[-1].strip() == ".venv/bin/python -m course.browser"
    given = subprocess.run([*make, "STUDENT=a b.safetensors"], cwd=root, capture_output=True, text=True, check=True)
    assert given.stdout.splitlines()[-1] == ".venv/bin/python -m course.browser --student 'a b.safetensors'"
