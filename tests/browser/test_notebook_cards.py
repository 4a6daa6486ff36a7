"""Cards of a notebook in a real browser: nothing in a hostile name runs, and the text is readable on dark and on light."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
from playwright.async_api import Page, async_playwright
from test_dashboard import ARGUMENTS, CHROMIUM

import grid
from grid.client.absence import Absence
from grid.client.datasets import Dataset
from grid.client.jobs import Job, JobList
from grid.client.nodes import Roster
from grid.client.reports import Report
from grid.clock import SystemClock
from grid.display import html
from grid.ids import JobId, PeerId
from grid.wire.jobs import JobCard
from grid.wire.messages import ColumnCard, DatasetCard, NodeCard, PolicyCard

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]

ATTACK = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


def cards() -> str:
    """A page of cards whose every text was written by an attacker."""
    columns = (ColumnCard(name=ATTACK, kind="number", role="feature"),)
    policy = PolicyCard(release="aggregate", plans="any", min_rows=10, max_elements=9, sinks=(ATTACK,))
    card = DatasetCard(
        name=ATTACK, description=ATTACK, tags=(ATTACK,), rows=40, columns=columns, policy=policy, feature_names=(ATTACK,),
        feature_shape=(1,), feature_dtype="f4", target_shape=(), target_dtype="", classes=0,
    )  # fmt: skip
    roster = Roster(lambda node: pytest.fail("a look at something opened a session"), lambda places: None)
    facts: dict[str, Any] = dict(id=PeerId("x" * 26), state="online", address="", card=b"", datasets=(card,))
    roster.update((NodeCard(name=ATTACK, organisation=ATTACK, **facts),))
    node = roster.find(ATTACK)
    told = JobCard(
        id=JobId(ATTACK), name=ATTACK, client=PeerId("x"), state=ATTACK, round=1, rounds=2, nodes=(PeerId("x"),), secure=True,
        strategy=ATTACK, started=0.0, text=ATTACK,
    )  # fmt: skip
    line: Any = SimpleNamespace(absence=Absence(ATTACK, -1e6, SystemClock()))  # for so long that it is told
    job = Job(told, line, lambda work: work, blocking=True)
    job._reports = [Report(number, {ATTACK: 1.0 / number}, 3, 9, 1.0, 9, 0, None, True, ATTACK) for number in (1, 2)]
    refused = grid.ReleaseDenied(ATTACK, rule=ATTACK, instead=ATTACK)
    shown = [node, Dataset(node, card), node.datasets, policy, job, JobList([job]), refused]
    return "".join(one._repr_html_() for one in shown) + html("plan", code=ATTACK)


async def contrast(page: Page) -> float:
    """The smallest contrast of text and page, by the usual formula of relative luminance; opacity counts."""
    script = """() => {
        const lum = c => { const f = v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
                           return .2126 * f(c[0]) + .7152 * f(c[1]) + .0722 * f(c[2]); };
        const rgb = s => s.match(/[\\d.]+/g).map(Number);
        const back = rgb(getComputedStyle(document.body).backgroundColor);
        return Math.min(...[...document.querySelectorAll('b, span, td, th, pre')].map(e => {
            let alpha = 1;
            for (let p = e; p; p = p.parentElement) alpha *= Number(getComputedStyle(p).opacity);
            const fore = rgb(getComputedStyle(e).color).slice(0, 3).map((v, i) => alpha * v + (1 - alpha) * back[i]);
            const [a, b] = [lum(fore), lum(back)].sort((x, y) => y - x);
            return (a + .05) / (b + .05);
        }));
    }"""
    return float(await page.evaluate(script))


async def test_cards_are_text_and_readable_on_dark_and_light() -> None:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            for back, fore in (("#ffffff", "#111111"), ("#111111", "#dddddd")):
                page = await browser.new_page(viewport={"width": 390, "height": 800})
                problems: list[str] = []
                page.on("console", lambda message, problems=problems: problems.append(message.text))
                page.on("pageerror", lambda error, problems=problems: problems.append(str(error)))
                style = f"margin:0;background:{back};color:{fore}"
                await page.set_content(f"<title>notebook</title><body style='{style}'>{cards()}</body>")
                assert await page.title() == "notebook" and not problems
                assert await page.locator("img, script, a, link, iframe").count() == 0
                assert ATTACK[:20] in re.sub(r"\s+", " ", await page.inner_text("body"))
                assert await contrast(page) >= 4.5
                assert await page.evaluate("document.documentElement.scrollWidth") <= 390, "a phone scrolls inside cards only"
                await page.close()
        finally:
            await browser.close()
