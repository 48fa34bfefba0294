"""The page in a real browser: no error, no request, players that play, a table that sorts by keyboard."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from audited_run import BuildRun, failed
from many_records import grid

from overheard.report.html import write_report

pytest.importorskip("playwright", reason="playwright is not installed: pip install playwright")
from playwright.sync_api import Browser, Page, sync_playwright

Scheme = Literal["light", "dark"]
NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@dataclass
class Visit:
    """An open page and what went on in it."""

    page: Page
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium, from OVERHEARD_CHROMIUM or the path."""
    binary = os.environ.get("OVERHEARD_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if binary is None:
        pytest.skip("no Chromium found: install one or name it in OVERHEARD_CHROMIUM")
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=binary, args=ARGUMENTS)
        yield opened
        opened.close()


def visit(browser: Browser, path: Path, width: int = 1280, scheme: Scheme = "light") -> Visit:
    """Open a page, keeping every error and request."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    seen = Visit(page)
    page.on("console", lambda message: seen.errors.append(message.text) if message.type != "log" else None)
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    page.on("request", lambda request: seen.requests.append(request.url))
    page.goto(path.as_uri(), wait_until="load")
    return seen


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_opens_without_error_request_or_sideways_scroll(
    browser: Browser, report: Path, width: int, scheme: Scheme
) -> None:
    seen = visit(browser, report, width, scheme)
    seen.page.wait_for_timeout(100)
    assert seen.errors == []
    assert {url for url in seen.requests if not url.startswith("data:")} == {report.as_uri()}
    assert seen.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert seen.page.evaluate("window.stolen") is None
    seen.page.close()


def test_every_player_plays(browser: Browser, report: Path) -> None:
    seen = visit(browser, report)
    # Waited for inside the page: its security policy forbids the polling of wait_for_function.
    durations = seen.page.evaluate(
        """() => Promise.all([...document.querySelectorAll("audio")].map(async (player) => {
            const known = new Promise((done) => player.addEventListener("loadedmetadata", done, { once: true }));
            if (player.readyState < 1) await known;
            return player.duration;
        }))"""
    )
    assert durations == pytest.approx([1.0] * 3 + [4.33] * 3 + [4.7] * 2, abs=0.01)
    playing = seen.page.evaluate(
        """async () => {
            const [first, second] = document.querySelectorAll("audio");
            first.muted = second.muted = true;
            const moved = new Promise((done) => second.addEventListener("timeupdate", done));
            await first.play();
            await second.play();
            await moved;
            return [first.paused, second.error];
        }"""
    )
    assert playing == [True, None]
    assert seen.page.evaluate("[...document.querySelectorAll('audio')].every((player) => player.ariaLabel)")
    assert seen.errors == []
    seen.page.close()


def column(page: Page, title: str) -> list[str]:
    """The sorting values of a column, top to bottom."""
    return page.evaluate(
        """(title) => {
            const table = document.getElementById("record-table");
            const headings = [...table.tHead.rows[0].cells];
            const place = headings.findIndex((cell) => cell.textContent.trim() === title);
            return [...table.tBodies[0].rows].map((row) => row.cells[place].dataset.value);
        }""",
        title,
    )


def test_every_column_sorts_by_keyboard(browser: Browser, report: Path) -> None:
    page = visit(browser, report).page
    titles = page.locator("#record-table thead button").all_inner_texts()
    assert {"Utterance", "Result", "Reason", "Feature error", "Attack (s)"} <= set(titles)
    for title in titles:
        button = page.locator("#record-table").get_by_role("button", name=title, exact=True)
        heading = button.locator("..")
        button.focus()
        orders = []
        for direction in ("ascending", "descending"):
            page.keyboard.press("Enter")
            assert heading.get_attribute("aria-sort") == direction
            values = column(page, title)
            known = [value for value in values if value != ""]
            assert values == known + [""] * (len(values) - len(known))
            numeric = heading.get_attribute("class") == "number"
            orders.append([float(value) for value in known] if numeric else known)
        assert sorted(orders[0]) == sorted(orders[1])
        if isinstance(orders[0][0], float):
            assert orders[0] == sorted(orders[0])
            assert orders[1] == sorted(orders[1], reverse=True)
    assert page.locator("#record-table [aria-sort=descending]").count() == 1
    page.close()


def sort_every_table(page: Page) -> None:
    """By click and by key: each heading of each table orders its rows, one after the other way round, and says so."""
    found = page.evaluate(
        """() => [...document.querySelectorAll(".scroll table")].map((table) => {
            const name = table.closest("[role=region]").getAttribute("aria-labelledby");
            const values = (place) =>
                [...table.tBodies[0].rows].map((row) => row.cells[place].dataset.value ?? row.cells[place].textContent);
            return [name, [...table.tHead.rows[0].cells].map((heading, place) => {
                const numeric = heading.classList.contains("number");
                const said = [];
                for (const _ of [1, 2]) {
                    heading.querySelector("button").click();
                    const known = values(place).filter((value) => value.trim() && value.trim() !== "\u2013");
                    const pairs = known.slice(1).map((value, index) => numeric ? value - known[index] : 0);
                    const direction = heading.getAttribute("aria-sort");
                    said.push(direction, pairs.every((step) => direction === "ascending" ? step >= 0 : step <= 0));
                }
                return said;
            })];
        })"""
    )
    assert {name for name, _ in found} >= {"reasons", "conditions", "voices", "records-caption"}
    for name, headings in found:
        assert headings, name
        assert all(said == ["ascending", True, "descending", True] for said in headings), (name, headings)


def test_filters_count_what_they_leave(browser: Browser, report: Path) -> None:
    page = visit(browser, report).page
    page.get_by_label("Only what was not recovered").check()
    assert page.get_by_role("status").inner_text() == "3 of 12 rows shown"
    page.get_by_label("Find").fill("CAPACITY")
    assert page.get_by_role("status").inner_text() == "1 of 12 rows shown"
    assert page.locator("#record-table tbody tr:visible").count() == 1
    page.close()


def test_a_run_without_success_opens_cleanly(browser: Browser, build_run: BuildRun) -> None:
    seen = visit(browser, write_report(build_run([failed(0, "silence")], examples=[])))
    assert seen.errors == []
    assert seen.page.get_by_role("heading", level=1).inner_text() == "Nothing was recovered"
    seen.page.close()


@pytest.mark.parametrize("width", [1280, 400])
def test_a_grid_with_prices_and_voices_fits(browser: Browser, build_run: BuildRun, width: int) -> None:
    path = write_report(build_run(list(grid(120)), examples=[]))
    seen = visit(browser, path, width)
    assert seen.errors == []
    assert seen.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert seen.page.get_by_role("heading", name="Voice and words in the audio").is_visible()
    assert seen.page.get_by_role("img").count() == 3
    sort_every_table(seen.page)
    assert seen.errors == []
    shots = os.environ.get("OVERHEARD_SCREENSHOTS")
    if shots:
        seen.page.screenshot(path=Path(shots) / f"grid-{width}.png", full_page=True)
    seen.page.close()
