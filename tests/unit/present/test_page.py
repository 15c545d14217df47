"""`report.html`: what its policy allows, and what it does in a real browser."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.browser import Browser
from support.records import record, rows_of, speed, sweep

from toolkit.present.chart import make_panels
from toolkit.present.page import page

pytestmark = pytest.mark.slow

HOSTILE = (
    "<b>bold</b></script><script>document.title=1</script><!--"
    "<img src=x onerror=document.title=1>&lt;i&gt;<a href='javascript:0'>$x^2$ %{x}"
)


def write_page(path: Path, records: list[dict[str, Any]]) -> Path:
    rows = rows_of(records)
    path.write_text(page(rows, make_panels(rows), [f"A note on {HOSTILE}."]), encoding="utf-8")
    return path


def elements(text: str, name: str) -> list[str]:
    return re.findall(rf"<{name}[^>]*>(.*?)</{name}>", text, re.DOTALL)


def test_names_from_files_stay_text() -> None:
    rows = rows_of([record(HOSTILE)])
    text = page(rows, [], [HOSTILE])
    assert text.count("<script") == text.count("</script>") == 3
    assert "<!--" not in text
    _, data, _ = elements(text, "script")
    assert json.loads(data)["rows"][0]["model"] == HOSTILE
    assert json.loads(data)["notes"] == [HOSTILE]


def test_the_page_allows_its_own_scripts_only() -> None:
    text = page(rows_of([record()]), [], [])
    (policy,) = re.findall('Content-Security-Policy" content="([^"]*)"', text)
    library, _, script = elements(text, "script")
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"
        for source in (library, script)
    ]
    assert policy.split("; ") == [
        "default-src 'none'",
        f"script-src {' '.join(hashes)}",
        "style-src 'unsafe-inline'",  # plotly's; nothing that a style names is loaded
        "img-src data:",  # plotly 6 tries what the browser can decode
        "base-uri 'none'",
        "form-action 'none'",
    ]
    own = text.replace(library, "")
    assert not re.search("https?://", own)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a sweep with two settings; one model has a hostile name, one engine, too."""
    longer = (speed("sparse", 5.0, seq_len=384), speed("sparse", 6.0, seq_len=384))
    odd = record(
        HOSTILE, layers=3, zeros=0.5, accuracy=90.0, speeds=(speed("<b>new</b>", 200.0), *longer)
    )
    return write_page(tmp_path_factory.mktemp("page") / "report.html", [*sweep(), odd])


@pytest.fixture
def opened(browser: Browser, swept: Path) -> Iterator[Browser]:
    """The page, just opened; its console must stay silent."""
    browser.problems.clear()
    browser.open(swept)
    yield browser
    assert browser.evaluate("document.title") == "toolkit report"
    assert browser.evaluate("document.querySelectorAll('img, b, i, a, a *').length") == 0
    assert browser.problems == []


def texts(browser: Browser, selector: str) -> list[str]:
    found: list[str] = browser.evaluate(
        f"[...document.querySelectorAll({json.dumps(selector)})].map(node => node.textContent)"
    )
    return found


def traces(browser: Browser) -> dict[str, dict[str, Any]]:
    """What plotly draws, by name."""
    found = browser.evaluate(
        "byId('chart').data.map(({name, x, y, line, marker, customdata}) =>"
        " ({name, x, y, line, marker, customdata}))"
    )
    return {trace["name"]: trace for trace in found}


def choose(browser: Browser, field: str, value: str) -> None:
    browser.evaluate(
        f"byId({json.dumps(field)}).value = {json.dumps(value)};"
        f"byId({json.dumps(field)}).dispatchEvent(new Event('change'))"
    )


def type_filter(browser: Browser, text: str) -> None:
    browser.evaluate(
        f"byId('filter').value = {json.dumps(text)};"
        "byId('filter').dispatchEvent(new Event('input'))"
    )


def test_the_chart_shows_what_the_picture_does(opened: Browser) -> None:
    found = traces(opened)
    assert {name: list(zip(t["x"], t["y"], strict=True)) for name, t in found.items()} == {
        "Pareto front": [(11, 96), (60, 95), (110, 93), (200, 90)],
        "12 layers, sparse": [(11, 96), (60, 95)],
        "12 layers, onnxruntime": [(10, 96), (10, 95)],
        "6 layers, sparse": [(50, 92), (110, 93)],
        "3 layers, &lt;b&gt;new&lt;/b&gt;": [(200, 90)],
        "baseline": [(10, 96)],
    }
    marks = {name: trace["marker"]["symbol"] for name, trace in found.items() if "marker" in trace}
    assert marks == {
        "12 layers, sparse": "circle",
        "12 layers, onnxruntime": "square",
        "6 layers, sparse": "circle",
        "3 layers, &lt;b&gt;new&lt;/b&gt;": "x",
        "baseline": "star",
    }
    assert found["12 layers, sparse"]["line"]["dash"] == "solid"
    assert found["12 layers, onnxruntime"]["line"]["dash"] == "10px 6px"
    assert texts(opened, ".legendtext") == [
        "Pareto front",
        "12 layers, sparse",
        "12 layers, onnxruntime",
        "6 layers, sparse",
        "3 layers, <b>new</b>",
        "baseline",
    ]
    assert sorted(texts(opened, ".annotation-text")) == [
        "50 %",
        "50 %",
        "90 %",
        "90 %",
        "dense",
        "dense",
    ]
    assert texts(opened, ".xtitle, .ytitle") == ["items_per_s (log)", "accuracy, %"]
    assert texts(opened, ".xtick text") == ["10", "20", "50", "100", "200"]


@pytest.mark.parametrize("is_dark", [False, True])
@pytest.mark.parametrize("width", [400, 1200])
def test_it_fits_wide_and_narrow_light_and_dark(
    browser: Browser, swept: Path, width: int, is_dark: bool
) -> None:
    browser.problems.clear()
    browser.open(swept, width, is_dark)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    fill = browser.evaluate("getComputedStyle(document.querySelector('.legendtext')).fill")
    assert fill == ("rgb(230, 233, 238)" if is_dark else "rgb(27, 31, 36)")
    boxes = browser.evaluate(
        "[...document.querySelectorAll('.annotation-text')]"
        ".map(node => node.getBoundingClientRect())"
        ".map(({left, right, top, bottom}) => [left, right, top, bottom])"
    )
    assert len(boxes) == (0 if width == 400 else 6)  # no room for labels
    for i, a in enumerate(boxes):
        assert 0 <= a[0] < a[1] <= width
        for b in boxes[:i]:
            assert a[0] >= b[1] or b[0] >= a[1] or a[2] >= b[3] or b[2] >= a[3]
    assert browser.problems == []


def test_precisions_of_one_engine_look_different(browser: Browser, tmp_path: Path) -> None:
    speeds = tuple(speed(f"sparse{end}", 9.0 + len(end)) for end in ("", ":bf16", ":int8"))
    browser.problems.clear()
    browser.open(write_page(tmp_path / "report.html", [record(accuracy=90.0, speeds=speeds)]))
    found = traces(browser)
    marks = [found[f"12 layers, {one['engine']}"]["marker"] for one in speeds]
    assert [mark["symbol"] for mark in marks] == ["circle", "circle", "circle-dot"]
    assert [mark["color"] for mark in marks] == ["#0072B2", "#fff", "#fff"]
    assert [mark["line"]["width"] for mark in marks] == [[0], [2], [2]]
    browser.click("tbody tr:nth-child(2) td")
    mark = traces(browser)["12 layers, sparse:bf16"]["marker"]
    assert mark["line"] == {"color": ["#1b1f24"], "width": [3]}
    assert browser.problems == []


def test_pointing_at_a_point_tells_its_row(opened: Browser) -> None:
    names = list(traces(opened))
    opened.point(f".scatterlayer .trace:nth-child({names.index('6 layers, sparse') + 1}) .point", 1)
    opened.wait("document.querySelector('.hovertext')")
    told = texts(opened, ".hovertext .nums tspan")
    assert {"run: demo 6 layers 90 %", "score %: 93.00", "items/s: 110.0"} <= set(told)
    assert not [line for line in told if line.startswith("teacher") and line != "teacher: dense"]


def test_a_hostile_name_is_told_as_it_is(opened: Browser) -> None:
    number = list(traces(opened)).index("3 layers, &lt;b&gt;new&lt;/b&gt;") + 1
    opened.point(f".scatterlayer .trace:nth-child({number}) .point")
    opened.wait("document.querySelector('.hovertext')")
    told = texts(opened, ".hovertext .nums tspan")
    assert f"run: {HOSTILE} 3 layers 50 %" in told
    assert "engine: <b>new</b>" in told
    assert f"{HOSTILE} 3 layers 50 %" in texts(opened, "td:first-child")
    assert f"A note on {HOSTILE}." in texts(opened, "#notes p")


def test_a_click_marks_row_and_point(opened: Browser) -> None:
    assert texts(opened, "tr.on") == []
    opened.click(".scatterlayer .trace:nth-child(2) .point", 1)
    opened.wait("document.querySelector('tr.on')")
    assert "demo 12 layers 90 %" in texts(opened, "tr.on")[0]
    widths = traces(opened)["12 layers, sparse"]["marker"]["line"]["width"]
    assert widths == [0, 3]
    opened.click("tbody td")
    (marked,) = texts(opened, "tr.on")
    assert marked.startswith("demo 12 layers dense")
    opened.click("tbody td")
    assert texts(opened, "tr.on") == []


def test_the_filter_holds_for_table_and_chart(opened: Browser) -> None:
    type_filter(opened, "93.00 DEMO  sparse")
    assert texts(opened, "#count") == ["1 of 8 rows"]
    assert texts(opened, "td:first-child") == ["demo 6 layers 90 %"]
    assert traces(opened)["12 layers, sparse"]["x"] == []
    assert traces(opened)["6 layers, sparse"]["x"] == [110]
    assert texts(opened, ".annotation-text") == ["90 %"]
    type_filter(opened, "nothing has this")
    assert texts(opened, "#count") == ["0 of 8 rows"]
    assert texts(opened, ".point") == []
    type_filter(opened, "")
    assert texts(opened, "#count") == ["8 of 8 rows"]
    assert len(texts(opened, ".annotation-text")) == 6


def test_axes_can_be_chosen(opened: Browser) -> None:
    opened.click("#log")
    assert texts(opened, ".xtitle, .ytitle") == ["items_per_s", "accuracy, %"]
    assert opened.evaluate("byId('chart').layout.xaxis.type") == "linear"
    options = texts(opened, "#x option")
    assert options == texts(opened, "#y option")
    assert {"encoder_sparsity", "latency_p99_ms", "speedup", "accuracy"} <= set(options)
    assert not {"engine", "pareto", "teacher"} & set(options)
    choose(opened, "x", "encoder_sparsity")
    choose(opened, "y", "speedup")
    opened.click("#log")
    found = traces(opened)
    assert "Pareto front" not in found
    assert found["12 layers, sparse"]["x"] == [0.0, 0.9]
    assert found["12 layers, sparse"]["y"] == pytest.approx([1.1, 6.0])
    assert texts(opened, ".xtitle, .ytitle") == ["encoder_sparsity", "speedup"]  # zero has no log


def test_a_dragged_zoom_outlives_a_click(opened: Browser) -> None:
    before = opened.evaluate("byId('chart').layout.xaxis.range")
    for kind, x in (("mousePressed", 300), ("mouseMoved", 500), ("mouseReleased", 500)):
        opened.call(
            "Input.dispatchMouseEvent",
            type=kind,
            x=x,
            y=300,
            button="left",
            buttons=1,
            clickCount=1,
        )
    zoomed = opened.evaluate("byId('chart').layout.xaxis.range")
    assert before[0] < zoomed[0] < zoomed[1] < before[1]
    opened.click("tbody td")
    assert texts(opened, "tr.on") != []
    assert opened.evaluate("byId('chart').layout.xaxis.range") == zoomed


def test_another_setting_is_another_chart(opened: Browser) -> None:
    titles = texts(opened, "#panel option")
    assert [title.split(",")[0] for title in titles] == [
        "demo: 32 texts of 128 tokens",
        "demo: 32 texts of 384 tokens",
    ]
    choose(opened, "panel", "1")
    assert traces(opened)["3 layers, sparse"]["x"] == [6.0]
    assert not opened.evaluate("byId('log').checked")
    assert traces(opened)["3 layers, sparse"]["marker"]["color"] == "#009E73"  # as in the first


def test_a_heading_sorts(opened: Browser) -> None:
    headings = texts(opened, "th")
    column = headings.index("items/s") + 1
    before = texts(opened, f"td:nth-child({column})")
    opened.click("th button", column - 1)
    down = [float(text) for text in texts(opened, f"td:nth-child({column})")]
    assert down == sorted(map(float, before), reverse=True)
    opened.click("th button", column - 1)
    assert [float(text) for text in texts(opened, f"td:nth-child({column})")] == down[::-1]
    assert opened.evaluate(f"headings.children[{column - 1}].ariaSort") == "ascending"


def test_without_a_panel_there_is_a_table_only(browser: Browser, tmp_path: Path) -> None:
    browser.problems.clear()
    browser.open(write_page(tmp_path / "report.html", [record(accuracy=9.0), record(zeros=0.5)]))
    assert browser.evaluate("byId('plot').hidden")
    assert len(texts(browser, "tbody tr")) == 2
    assert browser.problems == []
