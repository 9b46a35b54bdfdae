"""A chat server in a process of its own that speaks as OpenAI's does, and misbehaves when it is told to.

What it answers is a function of the request, so that a test knows each page: see `page`. A deed is what happens to one
request: `well`, `slow SECONDS`, `STATUS`, `STATUS RETRY-AFTER`, `cut` (a part of the body), `invalid` (JSON), `empty`
(a completion), `deaf` (the connection is closed) or `die` (the process is killed). A request that holds the word
POISON gets status 500, always.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from zlib import crc32


def page(messages: object, seed: int) -> str:
    mark = crc32(json.dumps([messages, seed]).encode())
    return f"Doc 1(Title: A) Made in {mark}.\nDoc 2(Title: B) x.\nDoc 3(Title: C) y."


class ChatProcess:
    """The server, for as long as the block lasts. It does well unless told otherwise."""

    def __init__(self, port: int = 0) -> None:
        self._process = subprocess.Popen([sys.executable, __file__, str(port)], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        self.port = int(self._process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> "ChatProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def do(self, *deeds: str, then: str = "well", probes: bool = True) -> None:
        """The deeds of the next requests, and of all that follow; without `probes` those for one token go well."""
        self._tell("/deeds", {"deeds": deeds, "then": then, "probes": probes})

    def asked(self) -> list[dict[str, Any]]:
        """The requests for more than one token, in order."""
        return [each for each in self._tell("/asked", {}) if each["max_tokens"] > 1]

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(timeout=30)

    def _tell(self, path: str, body: Mapping[str, object]) -> Any:
        address = f"http://127.0.0.1:{self.port}{path}"
        with urllib.request.urlopen(address, json.dumps(body).encode(), timeout=30) as answer:
            return json.load(answer)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.lock = threading.Lock()
        self.asked: list[dict[str, Any]] = []
        self.deeds: list[str] = []
        self.then, self.probes = "well", True

    def deed(self, request: dict[str, Any]) -> str:
        with self.lock:
            self.asked.append(request)
            if "POISON" in json.dumps(request["messages"]):
                return "500"
            if request["max_tokens"] == 1 and not self.probes:
                return "well"
            return self.deeds.pop(0) if self.deeds else self.then

    def handle_error(self, *_: object) -> None:
        """Clients that hang up are no news."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/asked":
            self.send(self.server.asked)
        elif self.path == "/deeds":
            self.server.deeds, self.server.then = list(request["deeds"]), request["then"]
            self.server.probes = request["probes"]
            self.server.asked = []
            self.send(None)
        else:
            self.answer(request, *self.server.deed(request).split())

    def answer(self, request: dict[str, Any], deed: str, detail: str = "") -> None:
        text = page(request["messages"], request["seed"])
        if deed == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif deed == "deaf":
            self.close_connection = True
        elif deed.isdigit():
            self.send({"error": {"message": f"status {deed}"}}, int(deed), retry_after=detail)
        elif deed == "cut":
            self.send(completion(text), sent=0.5)
        elif deed == "invalid":
            self.send_bytes(json.dumps(completion(text)).encode()[:-9])
        else:
            time.sleep(float(detail or 0))
            self.send(completion("" if deed == "empty" else text))

    def send(self, value: object, status: int = 200, retry_after: str = "", sent: float = 1.0) -> None:
        self.send_bytes(json.dumps(value).encode(), status, retry_after, sent)

    def send_bytes(self, body: bytes, status: int = 200, retry_after: str = "", sent: float = 1.0) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        if retry_after:
            self.send_header("retry-after", retry_after)
        self.end_headers()
        self.wfile.write(body[: int(len(body) * sent)])
        if sent < 1:
            self.close_connection = True

    def log_message(self, *_: object) -> None: ...


def completion(text: str) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}


if __name__ == "__main__":
    server = Server(int(sys.argv[1]))
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()
