"""The search server under load: many clients at once, pages written by a stub of a language model's server.

`python benchmarks/search_server.py` prints searches per second, what the server adds to the stub's latency, failed
requests and processor time per search, beside a client of ten threads that each wait for their own call to the same
stub, and which of these figures reach what they should with 256 clients and a stub of a second on two cores. Stub,
server and clients are processes of their own, on the same machine.
"""

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = "\n".join(f"Doc {n}(Title: Title {n}) {f'Thirty words make document {n}. ' * 6}" for n in (1, 2, 3))
RECIPE = [
    "world",
    "simulation.mode=prompt",
    "simulation.tuning.enabled=false",
    "simulation.model=stub",
    "simulation.concurrency=512",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=256, help="clients at once, each of which waits for its page")
    parser.add_argument("--rounds", type=int, default=8, help="searches of each client")
    parser.add_argument("--latency", type=float, default=1.0, help="seconds that the stub takes for a page")
    parser.add_argument("--stub", action="store_true", help="be the stub, and print its port")
    given = parser.parse_args()
    if given.stub:
        asyncio.run(be_stub(given.latency))
    with stub(given.latency) as chat_url, server(chat_url) as (url, process):
        asyncio.run(load(url, 1, 1))
        before = processor_seconds(process.pid)
        found = asyncio.run(load(url, given.clients, given.rounds))
        each = (processor_seconds(process.pid) - before) / len(found.seconds)
        waiting = ten_threads(chat_url, 40)
    print(
        f"{len(found.seconds)} searches by {given.clients} clients at once, stub of {given.latency:g} s, "
        f"{os.cpu_count()} cores"
    )
    print("\n| | measured | wanted | |\n|---|---:|---|---|")
    for name, figure, reached, target in figures(found, given.latency, waiting):
        print(f"| {name} | {figure} | {target} | {'reached' if reached else 'missed'} |")
    print(f"| processor time of the server for a search | {1000 * each:.2f} ms | | |")


def figures(found: "Load", latency: float, waiting: float) -> list[tuple[str, str, bool, str]]:
    """What was measured, whether that is enough, and what was to be reached. waiting: the ten threads' rate."""
    added = [seconds - latency for seconds in sorted(found.seconds)]
    median, late, times = statistics.median(added), added[int(0.99 * (len(added) - 1))], found.rate / waiting
    return [
        ("failed requests", f"{found.failed}", not found.failed, "none"),
        ("added at the median", f"{median:.3f} s", median <= 0.5, "at most 0.5 s"),
        ("added at p99", f"{late:.3f} s", late <= 1.5, "at most 1.5 s"),
        ("searches per second", f"{found.rate:.1f}", found.rate >= 100, "at least 100"),
        ("ten waiting threads", f"{waiting:.1f} a second, {times:.1f} times fewer", times >= 10, "10 times fewer"),
    ]


@contextmanager
def stub(latency: float) -> Iterator[str]:
    """A chat model's server that writes the same page for whoever asks, after `latency` seconds; gives its base URL."""
    command = [sys.executable, __file__, "--stub", "--latency", str(latency)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
    finally:
        process.kill()
        process.wait(60)


async def be_stub(latency: float) -> None:
    message = {"role": "assistant", "content": PAGE}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "stub", "choices": [choice]}
    body = json.dumps(answer).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()

    async def answer_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await _message(reader)
                if latency:
                    await asyncio.sleep(latency)
                writer.write(head + body)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    listening = await asyncio.start_server(answer_all, "127.0.0.1", 0, backlog=2048)
    print(listening.sockets[0].getsockname()[1], flush=True)
    await listening.serve_forever()


@contextmanager
def server(chat_url: str) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """`zerosearch serve` with a simulator behind that URL; gives its own address and its process."""
    command = [sys.executable, "-m", "zerosearch", "serve", "--port", "0", "--noise", "0", "--recipe", *RECIPE]
    process = subprocess.Popen([*command, f"simulation.url={chat_url}"], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout
    try:
        said = process.stdout.readline()
        found = re.search(r"http://\S+:\d+", said)
        assert found, said
        yield found[0], process
    finally:
        process.terminate()
        process.wait(60)


@dataclass
class Load:
    """What clients met: seconds of each search, requests that failed, searches per second."""

    seconds: list[float]
    failed: int
    rate: float


async def load(url: str, clients: int, rounds: int, first: int = 0) -> Load:
    """Let clients search at once, each time for something else, each `rounds` times, one search after the other."""
    host, _, port = url.removeprefix("http://").partition(":")
    seconds: list[float] = []
    failed = 0

    async def one(client: int) -> None:
        nonlocal failed
        reader, writer = await asyncio.open_connection(host, int(port))
        for number in range(rounds):
            asked = {"queries": [f"query {first + number} of {client}"], "topk": 3, "return_scores": True}
            body = json.dumps(asked).encode()
            head = f"POST /retrieve HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
            started = time.perf_counter()
            writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            status, answer = await _message(reader)
            seconds.append(time.perf_counter() - started)
            failed += status != 200 or len(json.loads(answer)["result"][0]) != 3
        writer.close()

    started = time.perf_counter()
    await asyncio.gather(*[one(client) for client in range(clients)])
    return Load(seconds, failed, len(seconds) / (time.perf_counter() - started))


async def _message(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """The next request's or answer's status (0 of a request) and body."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    size = re.search(rb"content-length: (\d+)", head)
    body = await reader.readexactly(int(size[1]) if size else 0)
    first = head.split(b" ", 2)
    return (int(first[1][:3]) if first[0].startswith(b"http") else 0), body


def ten_threads(chat_url: str, calls: int) -> float:
    """Pages per second of a client whose ten threads each wait for their own call."""
    from openai import OpenAI

    client = OpenAI(base_url=chat_url, api_key="none")

    def call(number: int) -> None:
        messages = [{"role": "user", "content": f"query {number}"}]
        client.chat.completions.create(model="stub", messages=messages)  # type: ignore[arg-type]

    call(0)
    started = time.perf_counter()
    with ThreadPoolExecutor(10) as threads:
        list(threads.map(call, range(calls)))
    return calls / (time.perf_counter() - started)


def processor_seconds(process: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(process: int) -> int:
    """Memory of a process that is in use now."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
