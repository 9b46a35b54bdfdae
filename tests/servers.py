"""Real HTTP servers for tests: an application behind uvicorn, and one that answers as it is told."""

import json
import socket
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import uvicorn

from zerosearch.data import Document
from zerosearch.search.engine import Page, SearchRequest
from zerosearch.serving.server import PatientProtocol


class Running:
    """An ASGI application behind uvicorn, in a thread, at a free port."""

    def __init__(self, app: Any) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(app, log_level="critical", lifespan="off", proxy_headers=False, http=PatientProtocol)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)

    def __enter__(self) -> "Running":
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(10)


class Engine:
    """Finds the documents that it is given for a query, or what `find` says."""

    name = "stub"

    def __init__(self, *documents: Document) -> None:
        self.documents = documents
        self.requests: list[SearchRequest] = []

    async def search(self, request: SearchRequest) -> Page:
        self.requests.append(request)
        return await self.find(request)

    async def find(self, request: SearchRequest) -> Page:
        return Page(self.documents[: request.k])


@dataclass
class Answer:
    """What a scripted server sends: bytes, or JSON. cut: the connection breaks in the middle of the body."""

    body: Any = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut: bool = False


@dataclass
class Asked:
    path: str
    headers: dict[str, str]
    body: bytes
    time: float

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Scripted(ThreadingHTTPServer):
    """Sends the prepared answers one after the other, the last one for ever, and remembers what it was asked."""

    daemon_threads = True

    def __init__(self, *answers: Answer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers = list(answers)
        self.asked: list[Asked] = []
        self.under_way = self.most_under_way = 0
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def handle_error(self, *_: Any) -> None:
        """Clients that hang up are no news."""

    def __enter__(self) -> "Scripted":
        return self

    def __exit__(self, *_: object) -> None:
        self.die()

    def die(self) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Scripted
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server, body = self.server, self.rfile.read(int(self.headers.get("content-length", 0)))
        with server.lock:
            headers = {name.lower(): value for name, value in self.headers.items()}
            server.asked.append(Asked(self.path, headers, body, time.monotonic()))
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
            answer = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
        time.sleep(answer.delay)
        with server.lock:
            server.under_way -= 1
        self.send(answer)

    do_GET = do_POST

    def send(self, answer: Answer) -> None:
        body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        headers = {"content-type": "application/json", "content-length": str(len(body) + 100 * answer.cut)}
        for name, value in (headers | answer.headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = self.close_connection or answer.cut

    def log_message(self, *_: Any) -> None: ...
