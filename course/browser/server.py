"""A server of the files of one site, which answers to nothing else: no folder is listed, no path is looked up."""

from __future__ import annotations

import errno
import os
import socket
import socketserver
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any

from course.browser.site import Site
from kdlib.errors import check_whole

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".webmanifest": "application/manifest+json",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
}
KEPT = "public, max-age=31536000, immutable"  # below /files the name changes with the contents


class Server(ThreadingHTTPServer):
    """Listens on an address at once; answers, from `serve_forever` on, with the files of `site`.

    host: a name or address of this machine. port: 0 takes any that is free. Raises ValueError for a port that is none,
    OSError, with the reason, if it cannot listen there.
    """

    daemon_threads = True
    # A port that a server has just left may be taken again; on Windows also one that another still serves.
    allow_reuse_address = os.name != "nt"

    def __init__(self, host: str, port: int) -> None:
        check_whole(0, 65535, port=port)
        self.site: Site = {}
        try:
            # The family decides how the socket is made, so it is looked up before.
            self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            super().__init__((host, port), Handler)
        except (OSError, UnicodeError) as error:
            raise _explained(error, host, port) from error

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def server_bind(self) -> None:
        """As the parent's, without its look-up of the machine's name, which takes seconds where there is no network."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])


def _explained(error: Exception, host: str, port: int) -> OSError:
    number = error.errno if isinstance(error, OSError) and not isinstance(error, socket.gaierror) else None
    if number == errno.EADDRINUSE:
        return OSError(number, f"Port {port} is taken by another program. Take another: --port 0 finds a free one")
    if number == errno.EACCES:
        return OSError(number, f"Port {port} may not be opened by this user. Take one above 1023, such as --port 8000")
    reason = (getattr(error, "strerror", None) or str(error)).rstrip(".")
    return OSError(
        number or errno.EADDRNOTAVAIL,
        f"{host!r} is no address of this machine ({reason}). Leave out --host for this machine only, or give "
        "0.0.0.0 for all of its addresses",
    )


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD for the addresses of the server's site."""

    protocol_version = "HTTP/1.1"
    server_version = "kdlib"
    sys_version = ""
    timeout = 60  # seconds after which a silent connection is closed
    server: Server

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, with_body: bool) -> None:
        url = self.path.partition("?")[0]
        url = "/index.html" if url == "/" else url
        content = self.server.site.get(url)
        if content is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        body = content if isinstance(content, bytes) else content.read_bytes()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", TYPES.get(PurePosixPath(url).suffix, "application/octet-stream"))
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", KEPT if url.startswith("/files/") else "no-cache")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """The terminal shows the address and no list of requests."""

    def handle(self) -> None:
        """A browser that goes away in the middle of an answer is no error."""
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True
