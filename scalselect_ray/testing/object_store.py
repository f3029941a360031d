"""A real S3 server (moto's, over loopback) behind a proxy that counts requests and can misbehave.

>>> from scalselect_ray.testing import object_store
>>> with object_store.serve() as store:
...     object_store.upload(Path("corpus"), "s3://bucket/corpus")
...     store.fault = object_store.every(5, ["503", "reset"])  # every fifth request goes wrong
...     ...

The server needs moto: `pip install 'scalselect-ray[dev]'`.
"""

import http.client
import os
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Lock, Thread

from scalselect_ray.io import storage

Fault = Callable[[str, str], str | None]
"""(method, path) of a request -> what goes wrong with it: "500", "503" or "403" (an answer of that status), "reset"
(the connection), "cut" (half of the answer), "slow" (a second more), or None: nothing."""
_ERRORS = {"500": "InternalError", "503": "SlowDown", "403": "AccessDenied"}


class ObjectStore:
    """What a test steers: `fault` is asked about each request. What it reads: `paths`, the (method, path) of each
    request so far, and `faults`, how many of them went wrong in which way ("none": well)."""

    def __init__(self, backend: int) -> None:
        self.fault: Fault = lambda method, path: None
        self.paths: list[tuple[str, str]] = []
        self.faults: Counter[str] = Counter()
        store, lock = self, Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                with lock:
                    store.paths.append((self.command, self.path))
                    kind = store.fault(self.command, self.path)
                    store.faults[kind or "none"] += 1
                body = self._body()
                if kind == "slow":
                    time.sleep(1.0)
                if kind in _ERRORS:
                    return self._answer(int(kind), {"Content-Type": "application/xml"}, _error(_ERRORS[kind]))
                if kind == "reset":
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.close_connection = True
                    self.connection.close()
                    return
                upstream = http.client.HTTPConnection("127.0.0.1", backend)
                upstream.request(self.command, self.path, body=body, headers=dict(self.headers))
                answer = upstream.getresponse()
                data = answer.read()
                self._answer(answer.status, dict(answer.headers), data, cut=kind == "cut" and len(data) > 1)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding") == "chunked":
                    body = b""
                    while size := int(self.rfile.readline().split(b";")[0], 16):
                        body += self.rfile.read(size)
                        self.rfile.readline()
                    self.rfile.readline()
                    return body
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))

            def _answer(self, status: int, headers: dict[str, str], data: bytes, cut: bool = False) -> None:
                self.send_response_only(status)
                for name, value in headers.items():
                    if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                        self.send_header(name, value)
                length = headers.get("Content-Length", len(data)) if self.command == "HEAD" else len(data)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data[: len(data) // 2] if cut else data)
                if cut:
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass  # a client that gave up

        self.server = Server(("127.0.0.1", 0), Handler)
        Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        """The URL of the server, by way of the proxy."""
        return f"http://127.0.0.1:{self.server.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which a process finds the server; the keys are made up."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "a-key-id-nobody-may-see",
            "AWS_SECRET_ACCESS_KEY": "a-secret-nobody-may-see",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def clear(self) -> None:
        """Forgets the requests so far, and lets nothing go wrong from here on. The objects stay."""
        self.fault = lambda method, path: None
        self.paths.clear()
        self.faults.clear()


def every(number: int, kinds: list[str], where: str = "") -> Fault:
    """Each `number`-th request to a path with `where` in it goes wrong, by the kinds in turn."""
    seen = Counter[str]()

    def fault(method: str, path: str) -> str | None:
        seen["all"] += where in path
        if where not in path or seen["all"] % number:
            return None
        seen["wrong"] += 1
        return kinds[seen["wrong"] % len(kinds)]

    return fault


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def upload(folder: Path, uri: str) -> None:
    """Copies a folder to a prefix of the store."""
    for path in folder.rglob("*"):
        if path.is_file():
            storage.write(storage.join(uri, path.relative_to(folder).as_posix()), path.read_bytes())


@contextmanager
def serve() -> Iterator[ObjectStore]:
    """The server and its proxy while the block runs, with an empty bucket `s3://bucket`. Its address and keys are in
    this process's environment, for all that is started from it. Raises ImportError where moto is not installed."""
    if find_spec("moto") is None:
        raise ImportError("the S3 server is moto's: pip install 'scalselect-ray[dev]'")
    port = free_port()
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    store = ObjectStore(port)
    before = {name: os.environ.get(name) for name in store.environment}
    os.environ.update(store.environment)
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        storage.filesystem("s3://bucket")[0].mkdir("bucket")
        yield store
    finally:
        store.server.shutdown()
        store.server.server_close()
        process.kill()
        process.wait()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _error(code: str) -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
