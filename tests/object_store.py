"""A real S3 server (moto's, over loopback) behind a proxy that counts requests and can misbehave."""

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
from pathlib import Path
from threading import Lock, Thread

from scalselect_ray.io import storage

Fault = Callable[
    [str, str], str | None
]  # (method, path) -> what goes wrong: "503", "403", "reset", "cut", "slow"; None: nothing
_ERRORS = {"500": "InternalError", "503": "SlowDown", "403": "AccessDenied"}


class ObjectStore:
    """What tests steer. `fault` is asked for each request; `requests` counts them by method, `paths` holds (method,
    path)."""

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
                    return self.connection.close()
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
        return f"http://127.0.0.1:{self.server.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "a-key-id-nobody-may-see",
            "AWS_SECRET_ACCESS_KEY": "a-secret-nobody-may-see",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def clear(self) -> None:
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
    """The server and its proxy while the block runs. Its address and keys are in this process's environment."""
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
