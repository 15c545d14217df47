"""`toolkit serve` as a process: it says where it listens, answers, and ends when told to."""

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import COMMAND, Run
from support.serving import get, post, write_export


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_export(tmp_path_factory.mktemp("serve") / "export", "base")


@contextmanager
def started(folder: Path, *args: str, **env: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Start the command in a folder; yields the process and its URL, once it listens."""
    process = subprocess.Popen(
        [COMMAND, "serve", "serve.port=0", *args],
        cwd=folder,
        env=os.environ | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert ready["event"] == "ready"
        yield process, ready["url"].rstrip("/")
    finally:
        process.kill()
        process.wait(30)
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_it_once_what_waits_is_answered(
    export: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    wait = "serve.max_wait_ms=1500"  # so long it waits for a second text
    with started(tmp_path, f"onnx={export}", wait) as (process, url):
        answers: list[tuple[int, Any]] = []
        ask = threading.Thread(
            target=lambda: answers.append(post(f"{url}/embed", {"inputs": "the soup"}))
        )
        ask.start()
        while "te_queue_size 1.0" not in get(f"{url}/metrics")[1]:
            time.sleep(0.01)
        process.send_signal(number)
        ask.join(60)
        stdout, stderr = process.communicate(timeout=60)
    assert [status for status, _ in answers] == [200]
    assert process.returncode == code, stderr
    lines = [json.loads(line) for line in stdout.splitlines()]
    assert [line["event"] for line in lines][-2:] == ["request", "stopped"]
    assert "Traceback" not in stderr
    assert not list(tmp_path.glob("**/*.log"))


def test_the_token_comes_from_the_environment_and_stays_off_the_disk(
    export: Path, tmp_path: Path
) -> None:
    secret = "hunter2-and-more"
    with started(tmp_path, f"onnx={export}", TOOLKIT_SERVE_TOKEN=secret) as (_, url):
        assert get(f"{url}/info")[0] == 401
        assert get(f"{url}/info", authorization=f"Bearer {secret}")[0] == 200
    kept = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert kept
    assert not any(secret in file.read_text() for file in kept)


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["onnx=missing"], 1, "expected an ONNX file"),
        ([], 2, "serve needs onnx"),
        (["onnx={export}", "engine=onnxruntime"], 2, "engine=sparse; got onnxruntime"),
        (["onnx={export}", "serve.max_queue=8"], 2, "must be at least serve.max_texts=32"),
        (["onnx={export}", "serve.prot=1"], 2, "did you mean 'serve.port'"),
    ],
)
def test_what_cannot_be_served_gets_a_sentence(
    toolkit: Run, export: Path, args: list[str], code: int, says: str
) -> None:
    run = toolkit("serve", *(arg.format(export=export) for arg in args))
    assert run.returncode == code, run.stderr
    assert says in run.stderr
    assert "Traceback" not in run.stderr


def test_a_port_that_is_taken_gets_a_sentence(toolkit: Run, export: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run = toolkit("serve", f"onnx={export}", f"serve.port={port}")
    assert run.returncode == 1, run.stderr
    assert f"cannot listen on 127.0.0.1:{port}" in run.stderr
    assert "Traceback" not in run.stderr
