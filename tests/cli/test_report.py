"""`toolkit report`, the real command, and its page in a real browser."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.browser import Browser, find_browser
from support.records import record, speed, write_all
from support.screenshot import READY

Toolkit = Callable[..., "subprocess.CompletedProcess[str]"]

HOSTILE = "</script><script>document.title='broken'</script><img src=x onerror=document.title=1>"


def write_runs(folder: Path) -> None:
    cells = [("demo", 6, 0.0, 97.0, 20.0), ("demo", 6, 0.8, 96.0, 70.0), (HOSTILE, 3, 0.8, 92, 130)]
    write_all(
        folder,
        [
            record(name, layers, zeros, accuracy, (speed("sparse", fast, batch_size=1),))
            for name, layers, zeros, accuracy, fast in cells
        ],
    )


def test_report_and_its_exit_codes(toolkit: Toolkit, tmp_path: Path) -> None:
    write_runs(tmp_path / "runs")
    run = toolkit("report", "runs", "select=accuracy>=95,latency_p99_ms<=500", "output_dir=out")
    assert run.returncode == 0, run.stderr
    assert "demo 6 layers 80 % through sparse" in run.stdout
    for name in ("report.html", "report.md", "results.csv", "pareto.png"):
        assert (tmp_path / "out" / name).stat().st_size > 0
    (page,) = (tmp_path / "out").glob("report.html")
    assert "The fastest run with accuracy" in page.read_text(encoding="utf-8")
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
    program = find_browser()
    if program is None:
        pytest.skip("needs chromium or google-chrome")
    write_runs(tmp_path / "runs")
    assert toolkit("report", "runs", "output_dir=out").returncode == 0
    with Browser(program, tmp_path / "profile") as browser:
        browser.open(tmp_path / "out" / "report.html")
        browser.wait(READY)
        assert browser.evaluate("document.title") == "toolkit report"
        assert browser.evaluate("document.querySelectorAll('#table tbody tr').length") == 3
        assert HOSTILE in browser.evaluate("document.querySelector('#table tbody').textContent")
        assert browser.evaluate("document.querySelectorAll('img').length") == 0
        # three points and the baseline's star
        assert browser.evaluate("document.querySelectorAll('.scatterlayer .point').length") == 4
        for selector, expected in (
            (".annotation-text", {"dense", "80 %"}),
            (
                "#legend span",
                {"Pareto front", "6 layers", "3 layers", "sparse", "baseline"},
            ),
        ):
            shown = f"[...document.querySelectorAll('{selector}')].map(node => node.textContent)"
            assert set(browser.evaluate(shown)) == expected
        assert browser.problems == []
