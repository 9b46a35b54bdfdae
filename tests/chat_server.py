"""A server that speaks as OpenAI's does: by default it plays a simulator."""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PAGE = "Doc 1(Title: A) Made in 1931.\nDoc 2(Title: B) x.\nDoc 3(Title: C) y."


def write_page(request: dict[str, Any]) -> dict[str, Any]:
    return {"content": PAGE}


class ChatServer(ThreadingHTTPServer):
    """Answers each request with the assistant's message of `reply`, after `delay` seconds, and dies after `life`."""

    allow_reuse_address = True

    def __init__(
        self,
        port: int = 0,
        delay: float = 0.0,
        life: int = 1_000_000,
        reply: Callable[[dict[str, Any]], dict[str, Any]] = write_page,
    ) -> None:
        super().__init__(("127.0.0.1", port), Chat)
        self.delay, self.life, self.reply = delay, life, reply
        self.asked: list[dict[str, Any]] = []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def handle_error(self, *_: Any) -> None:
        """Clients that hang up are no news."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def die(self) -> None:
        self.shutdown()
        self.server_close()


def _answer(kind: str, choice: dict[str, Any]) -> bytes:
    return json.dumps({"id": "1", "object": kind, "created": 0, "model": "m", "choices": [choice]}).encode()


def _stream(message: dict[str, Any], reason: str) -> bytes:
    """The message as the events of a stream."""
    calls = [{"index": index, **call} for index, call in enumerate(message.get("tool_calls", []))]
    delta = message | ({"tool_calls": calls} if calls else {})
    choices = {"index": 0, "delta": delta, "finish_reason": None}, {"index": 0, "delta": {}, "finish_reason": reason}
    chunks = [_answer("chat.completion.chunk", choice) for choice in choices]
    return b"".join(b"data: %s\n\n" % event for event in (*chunks, b"[DONE]"))


class Chat(BaseHTTPRequestHandler):
    server: ChatServer

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append(request)
        if len(self.server.asked) > self.server.life:
            self.close_connection = True
            if len(self.server.asked) == self.server.life + 1:
                self.server.die()
            return
        time.sleep(self.server.delay)
        message = {"role": "assistant", **self.server.reply(request)}
        reason = "tool_calls" if "tool_calls" in message else "stop"
        if request.get("stream"):
            kind, body = "text/event-stream", _stream(message, reason)
        else:
            choice = {"index": 0, "message": message, "finish_reason": reason}
            kind, body = "application/json", _answer("chat.completion", choice)
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...
