"""Limits, tokens, clients that leave, and what is told of it: over real connections."""

import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.serving import get, post, serving, slowly

from toolkit.serving.journal import JsonLines

TOKEN = "a secret"
TEXT = {"inputs": "the soup was good"}


@pytest.fixture(scope="module")
def slow(exports: Callable[[str], Path]) -> Iterator[str]:
    """A server whose every batch takes a quarter of a second, for two texts at most."""
    limits = {"max_batch": 2, "max_queue": 4, "max_texts": 4, "max_body_bytes": 1000}
    with serving(exports("embedding"), slowly(0.25), token=TOKEN, **limits) as url:
        yield url


def bearer(token: str = TOKEN) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def test_what_is_asked_for_needs_the_token(slow: str) -> None:
    for wrong in ({}, bearer("a"), bearer(TOKEN + "x"), {"authorization": TOKEN}):
        status, answer = post(f"{slow}/embed", TEXT, **wrong)
        assert status == 401
        assert TOKEN not in json.dumps(answer)
    assert post(f"{slow}/embed", TEXT, **bearer())[0] == 200
    for path in ("/info", "/metrics", "/v2/models/embedding", "/nowhere"):
        assert get(slow + path)[0] == 401
    assert get(f"{slow}/info", **bearer())[0] == 200
    for path in ("/", "/health", "/v2/health/ready", "/v2/health/live"):
        assert get(slow + path)[0] == 200
    assert post(slow, TEXT)[0] == 401  # the page is open, its route is not


def test_too_many_bytes_are_refused_before_they_are_sent(slow: str) -> None:
    long = {"inputs": "soup " * 300}
    status, answer = post(f"{slow}/embed", long, **bearer())
    assert (status, answer["error"]) == (413, "a request has at most 1000 bytes")
    assert post(f"{slow}/v2/models/embedding/infer", long, **bearer())[0] == 413
    chunks = b"".join(b"64\r\n" + b"x" * 100 + b"\r\n" for _ in range(11)) + b"0\r\n\r\n"
    head = f"POST /embed HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {TOKEN}\r\n"
    assert exchange(slow, f"{head}transfer-encoding: chunked\r\n\r\n".encode() + chunks).startswith(
        b"HTTP/1.1 413"
    )
    assert exchange(slow, f"{head}content-length: 9999999\r\n\r\n".encode()).startswith(
        b"HTTP/1.1 413"
    )
    assert post(f"{slow}/embed", TEXT, **bearer(), **{"content-encoding": "gzip"})[0] == 415


def exchange(url: str, request: bytes) -> bytes:
    """Send bytes as they are, and read what comes until the server hangs up or is silent."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(request)
        return connection.recv(1 << 16)


def test_who_sends_too_slowly_is_hung_up_on(exports: Callable[[str], Path]) -> None:
    with serving(exports("embedding"), read_timeout_s=0.2) as url:
        begun = b"POST /embed HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\n{"
        assert exchange(url, begun).startswith(b"HTTP/1.1 408")


def test_a_full_queue_refuses_at_once_and_answers_the_others(slow: str) -> None:
    results: list[tuple[int, float]] = []

    def ask() -> None:
        began = time.monotonic()
        status, _ = post(f"{slow}/embed", {"inputs": ["the soup"] * 2}, **bearer())
        results.append((status, time.monotonic() - began))

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    statuses = [status for status, _ in results]
    assert len(statuses) == 12
    assert set(statuses) == {200, 429}
    assert 2 <= statuses.count(200) < 12
    refused = post(f"{slow}/embed", {"inputs": ["the soup"] * 5}, **bearer())
    assert refused[1]["error"] == "batch size 5 > maximum allowed batch size 4"


def test_the_work_of_who_hangs_up_is_dropped(slow: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "toolkit.serving")
    metric = "te_batch_next_size_sum "

    def computed() -> float:
        lines = get(f"{slow}/metrics", **bearer())[1].splitlines()
        return float(next(line for line in lines if line.startswith(metric)).split()[1])

    body = json.dumps(TEXT).encode()
    head = f"POST /embed HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {TOKEN}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    request = head.encode() + body
    before = computed()
    host, port = slow.removeprefix("http://").split(":")
    first = threading.Thread(target=post, args=(f"{slow}/embed", TEXT), kwargs=bearer())
    first.start()  # keeps the engine busy
    time.sleep(0.1)
    for _ in range(3):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(request)
            time.sleep(0.02)
    first.join(30)
    assert post(f"{slow}/embed", TEXT, **bearer())[0] == 200
    assert computed() == before + 2
    gone = [r for r in caplog.records if getattr(r, "fields", {}).get("status") == 499]
    assert len(gone) == 3


def test_the_log_has_numbers_but_no_text(
    exports: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    caplog.handler.setFormatter(JsonLines())
    with serving(exports("embedding")) as url:
        post(f"{url}/embed?SECRET", {"inputs": ["SECRET soup", "soup"]})
        post(f"{url}/embed", {"inputs": {"SECRET": 1}})
        post(f"{url}/SECRET", {"inputs": "SECRET"})
    lines = [json.loads(caplog.handler.format(record)) for record in caplog.records]
    assert "SECRET" not in json.dumps(lines)
    requests = [line for line in lines if line["event"] == "request"]
    # the server of the test before may still say what it answered last
    requests = [line for line in requests if line["path"] != "/metrics"]
    assert [(line["path"], line["status"], line["texts"]) for line in requests] == [
        ("/embed", 200, 2),
        ("/embed", 422, 0),
        ("other", 404, 0),
    ]
    assert requests[0]["tokens"] > 4
    assert 0 <= requests[0]["inference_ms"] <= requests[0]["ms"]


def test_a_bug_is_told_by_kind_and_place(
    exports: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    def load(config: object) -> object:
        from dataclasses import replace

        from toolkit.serving.model import load_model

        model = load_model(config)  # type: ignore[arg-type]
        calls = []

        def run(inputs: Any) -> Any:
            calls.append(0)
            if len(calls) > 2:  # two probes pass
                raise KeyError("SECRET")
            return model.run(inputs)

        return replace(model, run=run)

    caplog.set_level(logging.INFO)
    with serving(exports("embedding"), load) as url:
        for _ in range(3):
            found = post(f"{url}/embed", TEXT)
        assert found == (424, {"error": "internal error", "error_type": "Backend"})
        assert get(f"{url}/health")[0] == 200
    errors = [r for r in caplog.records if r.getMessage() == "error"]
    assert errors
    assert errors[0].fields["error"] == "KeyError"  # type: ignore[attr-defined]
    assert "SECRET" not in caplog.text
