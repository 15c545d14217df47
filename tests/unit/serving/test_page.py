"""The page in a real browser, from a real server."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support.browser import Browser
from support.serving import get, serving

TOKEN = "a secret"


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("embedding", "0."),
        ("classifier", '"label": "good"'),
        ("reranker", '"text": "The soup was good."'),
        ("question_answering", '"answer"'),
        ("token_classifier", "FOOD"),
    ],
)
def test_every_kind_can_be_tried(
    browser: Browser, served: Callable[[str], str], kind: str, says: str
) -> None:
    browser.problems.clear()
    browser.visit(f"{served(kind)}/", width=390)
    browser.wait("!byId('form').hidden")
    assert browser.evaluate("byId('name').textContent") == kind
    browser.click("#send")
    browser.wait("byId('times').textContent.startsWith('last')")
    assert says in browser.evaluate("byId('answer').textContent")
    width = browser.evaluate("document.documentElement.scrollWidth")
    assert width <= 390
    assert browser.problems == []


def test_repeating_draws_the_latency(browser: Browser, served: Callable[[str], str]) -> None:
    browser.visit(f"{served('embedding')}/", is_dark=True)
    browser.wait("!byId('form').hidden")
    browser.click("#repeat")
    browser.wait("byId('line').points.length >= 5")
    browser.click("#repeat")
    assert "median" in browser.evaluate("byId('times').textContent")
    assert browser.evaluate("byId('repeat').textContent") == "Repeat"


def test_a_token_is_asked_for(browser: Browser, exports: Callable[[str], Path]) -> None:
    with serving(exports("embedding"), token=TOKEN) as url:
        browser.visit(f"{url}/")
        browser.wait("!byId('ask-token').hidden")
        assert browser.evaluate("byId('form').hidden")
        browser.evaluate(
            f"byId('token').value = '{TOKEN}'; byId('token').dispatchEvent(new Event('change'))"
        )
        browser.wait("!byId('form').hidden")
        browser.problems.clear()  # the browser reports the refused request


def test_the_page_may_run_its_own_script_and_nothing_else(
    browser: Browser, served: Callable[[str], str]
) -> None:
    text = get(f"{served('embedding')}/")[1]
    assert "http:" not in text
    assert "https:" not in text
    browser.visit(f"{served('embedding')}/")
    browser.wait("!byId('form').hidden")
    browser.problems.clear()
    browser.evaluate(
        "(() => { const script = document.createElement('script');"
        " script.textContent = 'window.injected = 1'; document.body.append(script); })()"
    )
    assert browser.evaluate("window.injected") is None
    assert any("Content Security Policy" in problem for problem in browser.problems)
