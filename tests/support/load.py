"""Measure an embedding server from another process: requests at a steady rate, open loop.

    python tests/support/load.py EXPORT TEXTS --rates 50,100 --seconds 10 [--stock] [--threads 2]

starts `toolkit serve` on EXPORT, or the stock server (`stock_server.py`: ONNX Runtime behind the
same app), asks for every line of TEXTS once by itself, then sends lines at each rate. A request
begins when it is due, not when another is answered: a closed loop would ask a slow server less, and
flatter it. Every answer is compared with the one that its text got by itself.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import orjson
from numpy.typing import NDArray

ATOL = 1e-4  # of vectors of length 1: another text's differ by 0.01 at least
LIMIT = 4000  # requests in flight, lest a stalled server exhaust this process
STOCK = Path(__file__).with_name("stock_server.py")


@contextmanager
def started(export: str, is_stock: bool, threads: int) -> Iterator[tuple[str, int]]:
    """Start a server; yields its URL and process id."""
    program = [sys.executable, str(STOCK)] if is_stock else [sys.executable, "-m", "toolkit.cli"]
    args = [export, str(threads)]
    if not is_stock:
        args = ["serve", f"onnx={export}", f"engine.num_threads={threads}", "serve.port=0"]
        args.append("output_dir=/tmp/toolkit-load")
    process = subprocess.Popen([*program, *args], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    drain = None
    try:
        url = json.loads(process.stdout.readline())["url"]
        drain = subprocess.Popen(["cat"], stdin=process.stdout, stdout=subprocess.DEVNULL)
        yield url, process.pid
    finally:
        process.terminate()
        process.wait(60)
        if drain is not None:
            drain.wait(60)


async def ask(session: aiohttp.ClientSession, url: str, text: str) -> tuple[int, bytes]:
    """Embed one text; 0 stands for a request that got no answer."""
    try:
        async with session.post(f"{url}embed", data=orjson.dumps({"inputs": text})) as response:
            return response.status, await response.read()
    except (aiohttp.ClientError, TimeoutError):
        return 0, b""


async def measure(
    url: str, texts: Sequence[str], alone: Sequence[NDArray[Any]], rate: float, seconds: float
) -> dict[str, Any]:
    """Send texts at a rate; returns counts and latencies in ms of those answered."""
    found: list[tuple[int, int, bytes, float]] = []
    async with session_of() as session:

        async def send(number: int, due: float) -> None:
            status, body = await ask(session, url, texts[number % len(texts)])
            found.append((number, status, body, time.perf_counter() - due))

        tasks: set[asyncio.Task[None]] = set()
        began = time.perf_counter()
        for number in range(int(rate * seconds)):
            due = began + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            assert len(tasks) < LIMIT, "too many requests are under way"
            task = asyncio.create_task(send(number, due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
    return summarise(found, alone, rate, int(rate * seconds))


def summarise(
    found: Sequence[tuple[int, int, bytes, float]],
    alone: Sequence[NDArray[Any]],
    rate: float,
    sent: int,
) -> dict[str, Any]:
    """Count what came back, and compare each answer with the one that its text got by itself."""
    counts = Counter(status for _, status, _, _ in found)
    wrong = 0
    for number, status, body, _ in found:
        if status == 200:
            vector = np.array(orjson.loads(body)[0])
            wrong += not np.allclose(vector, alone[number % len(alone)], atol=ATOL)
    times = np.array([1e3 * took for _, status, _, took in found if status == 200])
    p50, p99 = np.percentile(times, [50, 99]) if len(times) else (np.nan, np.nan)
    return {
        "rate": rate,
        "sent": sent,
        "answered": counts[200],
        "refused": counts[429],
        "lost": sent - counts[200] - counts[429],
        "wrong": wrong,
        "p50_ms": round(float(p50), 1),
        "p99_ms": round(float(p99), 1),
    }


async def capacity(url: str, texts: Sequence[str], seconds: float, clients: int = 64) -> float:
    """Return texts per second with so many clients that each wait for their answer."""
    end, done = time.perf_counter() + seconds, 0
    async with session_of() as session:

        async def client(number: int) -> None:
            nonlocal done
            while time.perf_counter() < end:
                status, _ = await ask(session, url, texts[number % len(texts)])
                done += status == 200
                number += clients

        await asyncio.gather(*map(client, range(clients)))
    return done / seconds


async def embed_alone(url: str, texts: Sequence[str]) -> list[NDArray[Any]]:
    """Embed every text in a request of its own, one after the other."""
    async with session_of() as session:
        answers = [await ask(session, url, text) for text in texts]
    assert all(status == 200 for status, _ in answers)
    return [np.array(orjson.loads(body)[0]) for _, body in answers]


def session_of() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(60),
        headers={"content-type": "application/json"},
    )


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"process {pid} has no memory of its own")


def main() -> None:
    """Measure as the command line says, and print a line per rate."""
    parser = argparse.ArgumentParser()
    parser.add_argument("export")
    parser.add_argument("texts", type=Path)
    parser.add_argument("--rates", default="")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--stock", action="store_true")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    texts = [line for line in options.texts.read_text().splitlines() if line.strip()]
    with started(options.export, options.stock, options.threads) as (url, pid):
        alone = asyncio.run(embed_alone(url, texts))
        print("capacity", round(asyncio.run(capacity(url, texts, options.seconds))), "texts/s")
        for rate in filter(None, options.rates.split(",")):
            before = resident_mib(pid)
            result = asyncio.run(measure(url, texts, alone, float(rate), options.seconds))
            print(result, f"memory {before:.0f} -> {resident_mib(pid):.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
