"""A chat server whose replies are a function of the messages."""

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import uvicorn
from fastapi import FastAPI, Request

Reply = Callable[[list[dict[str, str]]], str]


class TalkingServer:
    """Speaks OpenAI's chat completions at `url` while the block lasts; `asked` holds the messages of each call.

    The greeting that tells whether a server is there is answered, too, and not counted.
    """

    def __init__(self, reply: Reply) -> None:
        self.asked: list[list[dict[str, str]]] = []
        app = FastAPI()

        @app.post("/v1/chat/completions")
        async def chat(request: Request) -> dict[str, Any]:
            messages = (await request.json())["messages"]
            greeted = messages == [{"role": "user", "content": "Hello"}]
            if not greeted:
                self.asked.append(messages)
            message = {"role": "assistant", "content": "Hello" if greeted else reply(messages)}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            return {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}

        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"
        self._uvicorn = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        sockets = {"sockets": [self._socket]}
        self._thread = threading.Thread(target=self._uvicorn.run, kwargs=sockets, daemon=True)

    def __enter__(self) -> "TalkingServer":
        self._thread.start()
        while not self._uvicorn.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._uvicorn.should_exit = self._uvicorn.force_exit = True
        self._thread.join(10)
