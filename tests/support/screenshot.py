"""Draw a page as a reader sees it: `python tests/support/screenshot.py PAGE PICTURE.png`.

PAGE is a report's HTML file, or an export folder: then its server's page, after answers to a text.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from support.browser import Browser, find_browser
from support.serving import serving

READY = "document.body.dataset.state === 'drawn'"


def shoot(
    browser: Browser,
    page: Path,
    picture: Path,
    width: int,
    is_dark: bool = False,
    height: int | None = None,
) -> None:
    """Open a report and save its first `height` pixels, or the whole, as PNG."""
    browser.open(page, width, is_dark)
    browser.wait(READY)
    picture.write_bytes(browser.screenshot(height))


def shoot_server(browser: Browser, export: Path, picture: Path, width: int) -> None:
    """Serve an export, let its page repeat the text that it opens with, and save what it shows."""
    with serving(export) as url:
        browser.visit(f"{url}/", width=width)
        browser.wait("!byId('form').hidden")
        browser.click("#repeat")
        browser.wait("byId('line').points.length >= 40")
        browser.click("#repeat")
        picture.write_bytes(browser.screenshot())


def main() -> None:
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--width", type=int, default=1280, help="pixels")
    parser.add_argument("--height", type=int, help="pixels; the whole page if not said")
    parser.add_argument("--dark", action="store_true")
    options = parser.parse_args()
    program = find_browser()
    if program is None:
        sys.exit("this needs chromium or google-chrome")
    with tempfile.TemporaryDirectory() as profile, Browser(program, Path(profile)) as browser:
        page, picture = options.page.resolve(), options.picture
        if page.is_dir():
            shoot_server(browser, page, picture, options.width)
            return
        shoot(browser, page, picture, options.width, options.dark, options.height)


if __name__ == "__main__":
    main()
