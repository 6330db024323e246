"""The command: prepares the page and serves it on this machine, until Ctrl-C.

python -m course.browser --student runs/distill/student.safetensors
"""

from __future__ import annotations

import argparse
import ipaddress
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from course.browser.networks import export_network, labels_of, open_network
from course.browser.runtime import cache_dir, runtime_files
from course.browser.server import Server
from course.browser.site import Site, build_site, check_folder, write_site
from kdlib import data
from kdlib.errors import exit_in_a_sentence

TEACHER, STUDENT = "resnet50-fashion", "resnet8-fashion"


class _Parser(argparse.ArgumentParser):
    """Tells a wrong option as all else is told: in a sentence."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}. What there is: {self.prog} --help")


def parser() -> argparse.ArgumentParser:
    """The options of the command line."""
    options = _Parser(
        prog="python -m course.browser",
        description="A page on which a teacher and its students answer in the browser; the server hands out files.",
    )
    options.add_argument("--teacher", default=TEACHER, metavar="NAME|FILE", help=f"left on the page ({TEACHER})")
    options.add_argument(
        *("--student", "-s"),
        action="append",
        metavar="NAME|FILE",
        help=f"right on the page ({STUDENT}); a file of kdlib distill; may be given several times",
    )
    options.add_argument("--port", type=int, default=8000, help="0 takes any that is free (8000)")
    options.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0 lets phones in the same network in (127.0.0.1: this machine only)"
    )
    options.add_argument("--out", type=Path, metavar="FOLDER", help="write the page here, and serve nothing")
    return options


def prepare(teacher: str, students: Sequence[str]) -> Site:
    """Make or find all that the page needs; raises ValueError, OSError or ImportError, each in a sentence."""
    fashion = data.load("fashion-mnist")
    names = [teacher, *students]
    for name in names:  # a mistake is told before anything is fetched or written
        open_network(name, fashion)
    cache = cache_dir()
    version, runtime = runtime_files(cache)
    networks = [
        export_network(name, label, fashion, cache) for name, label in zip(names, labels_of(names), strict=True)
    ]
    return build_site(networks[0], networks[1:], fashion, version, runtime)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; what a user can cause ends in one sentence and exit code 2, not in a traceback."""
    with exit_in_a_sentence():
        options = parser().parse_args(arguments)
        if options.out is not None:
            check_folder(options.out)  # before the work
            write_site(prepare(options.teacher, options.student or [STUDENT]), options.out)
            print(f"The page is in {options.out}. Any host of static files can serve it.")
            return
        with Server(options.host, options.port) as server:  # before the work: a port that is taken is told at once
            server.site = prepare(options.teacher, options.student or [STUDENT])
            print(announcement(server), flush=True)
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                print()


def announcement(server: Server) -> str:
    """The page's address, and a warning where others can reach it."""
    host = str(server.server_address[0])
    if ipaddress.ip_address(host).is_loopback:
        return f"Teacher and student (Ctrl-C stops the server): {_address(host, server.port)}"
    shown = _own_address() if ipaddress.ip_address(host).is_unspecified else host
    return (
        f"Teacher and student (Ctrl-C stops the server): {_address(shown, server.port)}\n"
        "Warning: everybody in this network can open the page; it hands out these networks and test pictures, and "
        "nothing else. Browsers keep a page for use without a network only from localhost or https."
    )


def _address(host: str, port: int) -> str:
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def _own_address() -> str:
    """This machine's address in its network, or 127.0.0.1 where it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: only the route is looked up
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


if __name__ == "__main__":
    main()
