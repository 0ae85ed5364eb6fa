"""The page in a real browser: nothing fails, every plot is drawn, nothing leaves the machine, nothing overflows."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from amfir.pipeline.report.build import build_report
from amfir.pipeline.report.page import to_html
from amfir.pipeline.report.read import read_folder

from .studyfolders import write_all

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    report = build_report([read_folder(write_all(folder / "studies"))])
    (folder / "report.html").write_text(to_html(report), encoding="utf-8")
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium on this machine")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield launched
        launched.close()


DRAWN = """() => [...document.querySelectorAll('.plot')].map((plot) => {
  const svg = plot.querySelector('svg');
  const box = svg ? svg.getBoundingClientRect() : { width: 0, height: 0 };
  const marks = plot.querySelectorAll('.mark-symbol path, .mark-rect path, .mark-line path').length;
  return [plot.id, Math.min(box.width, box.height), marks, box.right - plot.getBoundingClientRect().right];
})"""


@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (390, "dark")])
def test_the_page_is_whole(browser: Any, page_file: Path, width: int, theme: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
    page, troubles, requests = context.new_page(), [], []
    page.on("console", lambda message: troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(page_file.as_uri())
    page.wait_for_selector("html[data-drawn]")
    assert troubles == []
    assert [url for url in requests if not url.startswith("data:")] == [page_file.as_uri()]
    plots = page.evaluate(DRAWN)
    assert len(plots) > 20
    assert [name for name, size, marks, over in plots if size < 40 or marks < 2 or over > 1] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if width > 1000:
        page.evaluate("document.querySelectorAll('details').forEach((part) => (part.open = true))")
        cut = "[...document.querySelectorAll('.scroll')].filter((part) => part.scrollWidth > part.clientWidth).length"
        assert page.evaluate(cut) == 0
    assert page.evaluate("[...document.images].every((image) => image.naturalWidth > 0)")
    _check_theme(page, theme)
    _check_legend(page)
    _check_sorting(page)
    assert troubles == []
    context.close()


def _check_theme(page: Any, theme: str) -> None:
    def lightness() -> tuple[int, int]:
        """Of the paper, and of a plot's text."""
        paper, ink = page.evaluate(
            """() => [getComputedStyle(document.body).backgroundColor,
                      getComputedStyle(document.querySelector('.plot svg text')).fill]
                     .map((colour) => Number(colour.match(/\\d+/)[0]))"""
        )
        return paper, ink

    paper, ink = lightness()
    assert (paper > 200 > 100 > ink) if theme == "light" else (paper < 60 < 200 < ink)
    page.click("#theme")
    assert (lightness()[0] > 128) == (theme == "dark")
    assert page.inner_text("#theme").lower() == theme  # it offers the way back


def _check_legend(page: Any) -> None:
    figure = page.locator("figure", has=page.locator(".legend")).first
    figure.locator(".legend button").first.click()
    page.wait_for_function(
        "(id) => document.querySelectorAll(`#${CSS.escape(id)} .mark-symbol path[opacity='0.12']`).length > 0",
        arg=figure.get_attribute("id"),
    )
    assert figure.locator(".legend button[aria-pressed=true]").count() == 1


def _check_sorting(page: Any) -> None:
    table = page.locator("table").first
    column = table.locator("thead th").nth(1)

    def values() -> list[float]:
        cells = "(table) => [...table.tBodies[0].rows].map((row) => row.cells[1].dataset.value || '')"
        return [float(value) for value in table.evaluate(cells) if value]

    before = values()
    column.locator("button").click()
    assert column.get_attribute("aria-sort") == "descending"
    assert values() == sorted(before, reverse=True)
    assert table.evaluate("(table) => table.tBodies[0].rows[0].cells[1].dataset.value") is not None
    column.locator("button").click()
    assert values() == sorted(before)
    # Methods without a number stay below, whichever way.
    assert table.evaluate("(table) => [...table.tBodies[0].rows].at(-1).cells[1].dataset.value === undefined")
