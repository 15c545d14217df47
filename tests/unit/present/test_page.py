"""`report.html`: what its policy allows, and what it does in a real browser."""

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from plotly.offline import get_plotlyjs
from support.browser import Browser
from support.records import (
    published_grid,
    record,
    rows_of,
    speed,
    sweep,
    with_details,
)
from support.screenshot import READY

from toolkit.present.answer import answer
from toolkit.present.chart import make_panels
from toolkit.present.compare import compare
from toolkit.present.details import details_of
from toolkit.present.page import page
from toolkit.present.results import Row, merge_runs

pytestmark = pytest.mark.slow

HOSTILE = (
    "<b>bold</b></script><script>document.title=1</script><!--"
    "<img src=x onerror=document.title=1>&lt;i&gt;<a href='javascript:0'>$x^2$ %{x}"
)


def page_of(records: list[dict[str, Any]], notes: Sequence[str] = ()) -> str:
    rows = rows_of(records)
    runs = merge_runs([(Path(f"runs/{i}/record.json"), r) for i, r in enumerate(records)])
    details = [each for run in runs for each in details_of(run)]
    return page(rows, details, make_panels(rows), answer(rows, 0.01), [], notes)


def write_page(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text(page_of(records, [f"A note on {HOSTILE}."]), encoding="utf-8")
    return path


def elements(text: str, name: str) -> list[str]:
    return re.findall(rf"<{name}[^>]*>(.*?)</{name}>", text, re.DOTALL)


def test_names_from_files_stay_text() -> None:
    text = page_of([record(HOSTILE, command=HOSTILE)], [HOSTILE])
    assert text.count("<script") == text.count("</script>") == 3
    assert "<!--" not in text
    _, data, _ = elements(text, "script")
    assert json.loads(data)["rows"][0]["model"] == HOSTILE
    assert json.loads(data)["rows"][0]["command"] == HOSTILE
    assert json.loads(data)["notes"] == [HOSTILE]


def test_the_page_allows_its_own_scripts_only() -> None:
    text = page_of([record()])
    assert len(text) < 2.5e6  # plotly alone has 4.8 MB
    (policy,) = re.findall('Content-Security-Policy" content="([^"]*)"', text)
    packed, _, script = elements(text, "script")
    assert zlib.decompress(base64.b64decode(packed)).decode() == get_plotlyjs()
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"
        for source in (get_plotlyjs(), script)
    ]
    assert policy.split("; ") == [
        "default-src 'none'",
        f"script-src {' '.join(hashes)}",
        "style-src 'unsafe-inline'",  # plotly's; nothing that a style names is loaded
        "img-src data:",  # plotly 6 tries what the browser can decode
        "base-uri 'none'",
        "form-action 'none'",
    ]
    # a name of XML's, which nothing loads
    assert set(re.findall('https?://[^"]*', text.replace(packed, ""))) == {
        "http://www.w3.org/2000/svg"
    }


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a sweep with two settings; one model has a hostile name, one engine, too."""
    longer = (speed("sparse", 5.0, seq_len=384), speed("sparse", 6.0, seq_len=384))
    odd = record(
        HOSTILE,
        layers=3,
        zeros=0.5,
        accuracy=90.0,
        speeds=(speed("<b>new</b>", 200.0), *longer),
        command=f"toolkit train {HOSTILE}",
    )
    return write_page(tmp_path_factory.mktemp("page") / "report.html", [*sweep(), odd])


@pytest.fixture
def opened(browser: Browser, swept: Path) -> Iterator[Browser]:
    """The page, just opened; its console must stay silent."""
    browser.problems.clear()
    show(browser, swept)
    yield browser
    assert browser.evaluate("document.title") == "toolkit report"
    assert browser.evaluate("document.querySelectorAll('img, b, i, a, a *').length") == 0
    assert browser.problems == []


def show(browser: Browser, page: Path, width: int = 1200, is_dark: bool = False) -> None:
    """Open a page and wait until its chart is drawn."""
    browser.open(page, width, is_dark)
    browser.wait(READY)


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
    assert texts(opened, "#legend span") == [
        "12 layers",
        "6 layers",
        "3 layers",
        "sparse",
        "onnxruntime",
        "<b>new</b>",
        "Pareto front",
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
    assert texts(opened, ".xtitle, .ytitle") == ["texts per second (log)", "accuracy, %"]
    assert texts(opened, ".xtick text") == ["10", "20", "50", "100", "200"]


@pytest.mark.parametrize(("width", "is_dark"), [(390, True), (1280, False), (1920, True)])
def test_it_fits_wide_and_narrow_light_and_dark(
    browser: Browser, swept: Path, width: int, is_dark: bool
) -> None:
    browser.problems.clear()
    show(browser, swept, width, is_dark)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    tables = browser.evaluate(
        "[...document.querySelectorAll('.fit')]"
        ".map(place => [place.firstElementChild.offsetWidth, place.clientWidth])"
    )
    assert all(table <= place for table, place in tables), tables
    shown = texts(browser, "#table th:not([style*=none])")
    assert {"run", "score %", "items/s"} <= set(shown)
    light, dark = (
        ["rgb(27, 31, 36)", "rgb(255, 255, 255)"],
        ["rgb(230, 233, 238)", "rgb(20, 24, 30)"],
    )
    colours = "(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))"
    assert browser.evaluate(colours) == (dark if is_dark else light)
    boxes = browser.evaluate(
        "[...document.querySelectorAll('.annotation-text')]"
        ".map(node => node.getBoundingClientRect())"
        ".map(({left, right, top, bottom}) => [left, right, top, bottom])"
    )
    assert len(boxes) == (0 if width == 390 else 6)  # no room for labels
    for i, a in enumerate(boxes):
        assert 0 <= a[0] < a[1] <= width
        for b in boxes[:i]:
            assert a[0] >= b[1] or b[0] >= a[1] or a[2] >= b[3] or b[2] >= a[3]
    assert browser.problems == []


def test_the_scheme_can_be_switched(opened: Browser) -> None:
    tick = "getComputedStyle(document.querySelector('.xtick text')).fill"
    assert opened.evaluate(tick) == "rgb(27, 31, 36)"
    opened.click("#scheme")
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 30)"
    assert opened.evaluate(tick) == "rgb(230, 233, 238)"
    opened.click("#scheme")
    assert opened.evaluate(tick) == "rgb(27, 31, 36)"


def test_the_answer_comes_first_and_is_the_run_that_is_shown(opened: Browser) -> None:
    (card,) = texts(opened, ".answer")
    assert card == (
        "Fastest within 1 % of the dense model"
        "demo 12 layers dense through sparse"
        "accuracy 96.00 · 11.0 texts/s · 1.1 × the speed of "
        "demo 12 layers dense through onnxruntime"
    )
    assert texts(opened, "#named") == ["demo 12 layers dense through sparse"]
    (marked,) = texts(opened, "tr.on")
    assert marked.startswith("demo 12 layers dense")


def test_a_run_shows_its_command_layers_profile_and_roofline(
    browser: Browser, tmp_path: Path
) -> None:
    made = record(
        zeros=0.9,
        accuracy=95.0,
        speeds=(speed("sparse", 60.0),),
        command="toolkit train depth=full",
    )
    browser.problems.clear()
    show(browser, write_page(tmp_path / "report.html", [with_details(made)]), 390)
    assert texts(browser, ".command code") == ["toolkit train depth=full"]
    assert len(texts(browser, "#layers tbody tr")) == 12
    assert texts(browser, "#layers tbody tr:first-child td") == ["0", *["90"] * 6]
    operations = texts(browser, "#operations tbody td:first-child")
    assert operations == ["output", "intermediate", "attention", "key", "query", "embeddings"]
    assert len(browser.evaluate("byId('roofline').data.slice(-1)[0].x")) == 5
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
    assert browser.problems == []


def test_precisions_of_one_engine_look_different(browser: Browser, tmp_path: Path) -> None:
    speeds = tuple(speed(f"sparse{end}", 9.0 + len(end)) for end in ("", ":bf16", ":int8"))
    browser.problems.clear()
    show(browser, write_page(tmp_path / "report.html", [record(accuracy=90.0, speeds=speeds)]))
    browser.click("#table tbody tr.on td")  # nothing is chosen now
    found = traces(browser)
    marks = [found[f"12 layers, {one['engine']}"]["marker"] for one in speeds]
    assert [mark["symbol"] for mark in marks] == ["circle", "circle", "circle-dot"]
    assert [mark["color"] for mark in marks] == [
        "#0072B2",
        "rgb(255, 255, 255)",
        "rgb(255, 255, 255)",
    ]
    assert [mark["line"]["width"] for mark in marks] == [[0], [2], [2]]
    browser.click("#table tbody tr:nth-child(2) td")
    mark = traces(browser)["12 layers, sparse:bf16"]["marker"]
    assert mark["line"] == {"color": ["rgb(27, 31, 36)"], "width": [3]}
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
    assert "toolkit train" in told
    assert any(line.startswith("<b>bold</b></script>") for line in told)  # lines of 70 letters
    assert f"{HOSTILE} 3 layers 50 %" in texts(opened, "td:first-child")
    opened.click("#table tbody tr:nth-child(7) td")
    assert texts(opened, "#named") == [f"{HOSTILE} 3 layers 50 % through <b>new</b>"]
    assert texts(opened, "#command code") == [f"toolkit train {HOSTILE}"]
    assert f"A note on {HOSTILE}." in texts(opened, "#notes p")


def test_a_click_marks_row_and_point(opened: Browser) -> None:
    opened.click("#table tbody tr.on td")
    assert texts(opened, "tr.on") == []
    assert opened.evaluate("byId('run').hidden")
    opened.click(".scatterlayer .trace:nth-child(2) .point", 1)
    opened.wait("document.querySelector('tr.on')")
    assert "demo 12 layers 90 %" in texts(opened, "tr.on")[0]
    widths = traces(opened)["12 layers, sparse"]["marker"]["line"]["width"]
    assert widths == [0, 3]
    opened.click("#table tbody td")
    (marked,) = texts(opened, "tr.on")
    assert marked.startswith("demo 12 layers dense")
    opened.click("#table tbody td")
    assert texts(opened, "tr.on") == []


def test_the_filter_holds_for_table_and_chart(opened: Browser) -> None:
    type_filter(opened, "93.00 DEMO  sparse")
    assert texts(opened, "#count") == ["1 of 8 rows"]
    assert texts(opened, "#table td:first-child") == ["demo 6 layers 90 %"]
    assert "12 layers, sparse" not in traces(opened)
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
    assert texts(opened, ".xtitle, .ytitle") == ["texts per second", "accuracy, %"]
    assert opened.evaluate("byId('chart').layout.xaxis.type") == "linear"
    values = "[...byId({}).options].map(option => option.value)"
    options = opened.evaluate(values.format("'x'"))
    assert options == opened.evaluate(values.format("'y'"))
    assert {"encoder_sparsity", "latency_p99_ms", "speedup", "accuracy"} <= set(options)
    assert not {"engine", "pareto", "teacher"} & set(options)
    choose(opened, "x", "encoder_sparsity")
    choose(opened, "y", "speedup")
    opened.click("#log")
    found = traces(opened)
    assert "Pareto front" not in found
    assert found["12 layers, sparse"]["x"] == [0.0, 0.9]
    assert found["12 layers, sparse"]["y"] == pytest.approx([1.1, 6.0])
    assert texts(opened, ".xtitle, .ytitle") == [
        "zeros in the encoder",  # zero has no log
        "times the baseline's speed",
    ]


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
    opened.click("#table tbody tr:nth-child(2) td")
    assert texts(opened, "tr.on") != []
    assert opened.evaluate("byId('chart').layout.xaxis.range") == zoomed


def test_facets_choose_rows_and_can_be_taken_back(opened: Browser) -> None:
    assert texts(opened, ".facet summary") == ["task", "engine", "layers", "zeros"][1:]
    opened.click(".facet:nth-child(1) summary")
    opened.click("input[name=engine][value=onnxruntime]")
    assert texts(opened, ".facet summary")[0] == "engine: 2 of 3"
    assert "12 layers, onnxruntime" not in traces(opened)
    assert texts(opened, "#count") == ["6 of 8 rows"]
    opened.click("h1")  # closes the list
    opened.click("#reset")
    assert texts(opened, "#count") == ["8 of 8 rows"]
    assert "12 layers, onnxruntime" in traces(opened)


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
    headings = texts(opened, "#table th")
    column = headings.index("items/s") + 1
    before = texts(opened, f"#table td:nth-child({column})")
    opened.click("#table th button", column - 1)
    down = [float(text) for text in texts(opened, f"#table td:nth-child({column})")]
    assert down == sorted(map(float, before), reverse=True)
    opened.click("#table th button", column - 1)
    assert [float(text) for text in texts(opened, f"#table td:nth-child({column})")] == down[::-1]
    assert opened.evaluate(f"headings.children[{column - 1}].ariaSort") == "ascending"


def test_without_a_panel_there_is_a_table_only(browser: Browser, tmp_path: Path) -> None:
    browser.problems.clear()
    show(browser, write_page(tmp_path / "report.html", [record(accuracy=9.0), record(zeros=0.5)]))
    assert browser.evaluate("byId('plot').hidden")
    assert len(texts(browser, "#table tbody tr")) == 2
    assert texts(browser, ".lead") == ["Not timed yet (toolkit bench onnx=DIR does)"]
    assert browser.problems == []


def test_published_figures_stand_where_there_is_no_score(browser: Browser, tmp_path: Path) -> None:
    browser.problems.clear()
    show(browser, write_page(tmp_path / "report.html", published_grid()))
    found = traces(browser)
    assert found["6 layers, published F1"]["x"] == [72, 113, 150]
    assert found["6 layers, published F1"]["y"] == [85.92, 83.6, 80.48]
    assert (found["baseline"]["x"], found["baseline"]["y"]) == ([6.4], [88.44])
    choose(browser, "y", "latency_p50_ms")
    assert "6 layers, published F1" not in traces(browser)
    assert browser.problems == []


def test_two_sets_are_compared_and_told_apart(browser: Browser, tmp_path: Path) -> None:
    sets = {name: rows_of(sweep()) for name in ("old", "new")}
    for name, rows in sets.items():
        for row in rows:
            row["set"] = name
            row["items_per_s"] *= 2 if name == "new" and row["engine"] == "sparse" else 1
    both: list[Row] = [*sets["old"], *sets["new"]]
    changes = compare(sets["old"], sets["new"])
    details = [{"layers": None, "profile": None, "roofline": None}] * len(both)
    text = page(both, details, make_panels(both, "old"), answer(both, 0.01), changes, ["summed up"])
    (tmp_path / "report.html").write_text(text, encoding="utf-8")
    browser.problems.clear()
    show(browser, tmp_path / "report.html", 390)
    assert texts(browser, "#summary") == ["summed up"]
    assert len(texts(browser, "#changes tbody tr")) == 6
    assert len(texts(browser, "#changes .better")) == 4
    opacity = browser.evaluate("byId('chart').data.map(({name, opacity}) => [name, opacity])")
    assert ["6 layers, sparse (old)", 0.4] in opacity
    assert ["6 layers, sparse (new)", 1] in opacity
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
    assert browser.problems == []
