"""`toolkit report`, the real command, and its page in a real browser."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from toolkit.record import SCHEMA_VERSION, write_record

Toolkit = Callable[..., "subprocess.CompletedProcess[str]"]

HOSTILE = "</script><script>document.title='broken'</script><img src=x onerror=document.title=1>"


def write_runs(folder: Path) -> None:
    cells = [("demo", 6, 0.0, 97.0, 20.0), ("demo", 6, 0.8, 96.0, 70.0), (HOSTILE, 3, 0.8, 92, 130)]
    for number, (name, layers, zeros, accuracy, items_per_s) in enumerate(cells):
        latency = dict.fromkeys(("p50", "p90", "p99", "mean", "std"), 1000 / items_per_s)
        entry: dict[str, Any] = {
            "engine": "sparse",
            "batch_size": 1,
            "seq_len": 32,
            "lengths": "fixed",
            "items_per_s": items_per_s,
            "tokens_per_s": 32 * items_per_s,
            "latency_ms": latency,
            "iterations": 5,
            "ratio_to": {"engine": "sparse", "ratio": 1.0, "low": 1.0, "high": 1.0},
            "num_threads": 1,
            "isa": "generic",
        }
        record = {
            "schema_version": SCHEMA_VERSION,
            "run": {
                "verb": "train",
                "id": str(number),
                "parent": None,
                "started": "2026-01-01T00:00:00Z",
                "finished": "2026-01-01T00:00:01Z",
                "seed": 1,
            },
            "config": {},
            "model": {
                "name": name,
                "layers": layers,
                "sparsity": {"encoder": zeros, "whole_model": zeros},
            },
            "metrics": {"accuracy": accuracy, "task": "demo", "num_examples": 100},
            "speed": [entry],
            "size_bytes": {},
            "environment": {"cpu": "a CPU"},
        }
        write_record(folder / str(number) / "record.json", record)


def test_report_and_its_exit_codes(toolkit: Toolkit, tmp_path: Path) -> None:
    write_runs(tmp_path / "runs")
    run = toolkit("report", "runs", "select=accuracy>=95,latency_p99_ms<=20", "output_dir=out")
    assert run.returncode == 0, run.stderr
    assert "demo 6 layers 80 % through sparse" in run.stdout
    for name in ("report.html", "report.md", "results.csv", "pareto.png"):
        assert (tmp_path / "out" / name).stat().st_size > 0
    for args, code, sentence in (
        (["runs", "select=accuracy>=99"], 3, "none of 3 measurements meets"),
        (["runs", "select=acuracy>=9"], 2, "did you mean 'accuracy'"),
        (["nowhere"], 1, "expected records below nowhere"),
    ):
        run = toolkit("report", *args, "output_dir=out")
        assert run.returncode == code, run.stderr
        assert sentence in run.stderr
        assert "Traceback" not in run.stderr


def test_the_page_in_a_browser(toolkit: Toolkit, tmp_path: Path) -> None:
    browser = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
    )
    if not browser:
        pytest.skip("needs chromium or google-chrome")
    write_runs(tmp_path / "runs")
    assert toolkit("report", "runs", "output_dir=out").returncode == 0
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "out/report.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert '<body data-ready="3">' in dom  # the script ran to its end
    assert "<title>toolkit report</title>" in dom
    body = dom.split("<tbody>")[1].split("</tbody>")[0]
    assert body.count("<tr") == 3
    assert HOSTILE in unescape(body)
    assert "<img" not in body
    chart = dom.split("<svg")[1].split("</svg>")[0]
    assert chart.count('class="point"') == 4  # two circles, the baseline's star, and its key
    assert 'class="front"' in chart
    labels = [unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)<", chart)]
    assert {"dense", "80 %", "6 layers, sparse", "3 layers, sparse", "baseline"} <= set(labels)
    data = json.loads(dom.split('id="data">')[1].split("</script>")[0])
    assert len(data["rows"]) == 3
