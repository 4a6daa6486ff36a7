"""The dashboard in a real browser, as somebody uses it. Runs with `--browser-tests`, where Chromium is installed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, Page, async_playwright, expect

from grid.gateway.http import HttpServer
from grid.settings import GatewaySettings
from grid.testing.crowd import Crowd, crowd, make_dataset

TOKEN = "the token of this test"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]

OFFLINE_MS = 3000
"""A killed node must show within this time."""

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]


class Reader:
    """A person at a browser. `problems` are what the console and the network complained about."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.problems: list[str] = []
        self.loads = 0
        page.on("console", lambda message: self._said(message.type, message.text))
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("load", lambda _: self._loaded())

    def _said(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.problems.append(text)

    def _loaded(self) -> None:
        self.loads += 1

    def state_of(self, node: str) -> str:
        """A selector for the state of the node with this name."""
        return f"#nodes tr:has(th bdi:text-is('{node}')) .state"


@contextlib.asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            yield started
        finally:
            await started.close()


@contextlib.asynccontextmanager
async def reader(width: int = 1280, height: int = 900) -> AsyncIterator[Reader]:
    async with browser() as started:
        page = await started.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(10_000)
        yield Reader(page)


@contextlib.asynccontextmanager
async def site() -> AsyncIterator[tuple[Crowd, HttpServer]]:
    async with crowd(GatewaySettings(dev=True, port=0), token=TOKEN) as grid, HttpServer(grid.gateway) as http:
        yield grid, http


async def test_a_reader_watches_nodes_come_and_go_without_reloading() -> None:
    async with site() as (grid, http), reader() as person:
        page = person.page
        alice = await grid.peer("alice")
        await alice.announce(make_dataset("patients", ["#cancer", "#train"], rows=1234), address="10.0.0.1:9001")
        await page.goto(f"{http.url}?token={TOKEN}")
        assert "token" not in page.url
        await expect(page.locator("#live")).to_have_text("live")
        await expect(page.locator(person.state_of("alice"))).to_have_text("online")
        await expect(page.locator("#datasets tbody tr")).to_contain_text(["patients"])
        bob = await grid.peer("bob")
        await bob.announce(make_dataset("weather", ["#open"]))
        await expect(page.locator(person.state_of("bob"))).to_have_text("online")
        await expect(page.locator("#datasets tbody tr")).to_have_count(2)
        loads = person.loads
        await alice.transport.close()
        await expect(page.locator(person.state_of("alice"))).to_have_text("offline", timeout=OFFLINE_MS)
        await expect(page.locator("#datasets tbody tr")).to_have_count(1)
        await expect(page.locator("#summary")).to_contain_text("1 of 2")
        assert person.loads == loads
        assert person.problems == []


async def test_the_token_form_lets_a_reader_in() -> None:
    async with site() as (_, http), reader() as person:
        page = person.page
        await page.goto(http.url)
        await page.get_by_label("Token").fill("not the token")
        await page.get_by_role("button").click()
        await expect(page.get_by_role("alert")).to_contain_text("not the token")
        await page.get_by_label("Token").fill(TOKEN)
        await page.get_by_role("button").click()
        await expect(page.locator("#nodes")).to_contain_text("No node has joined yet")
        cookies = await page.context.cookies()
        assert [(cookie["httpOnly"], cookie["sameSite"]) for cookie in cookies] == [(True, "Strict")]


async def test_tags_filter_and_an_opened_row_stays_open_while_the_page_lives() -> None:
    async with site() as (grid, http), reader() as person:
        page = person.page
        alice = await grid.peer("alice")
        await alice.announce(make_dataset("first", ["#a", "#b"], description="All about it"), make_dataset("second", ["#a"]))
        await page.goto(f"{http.url}?token={TOKEN}")
        rows = page.locator("#datasets tbody tr")
        await expect(rows).to_have_count(2)
        await page.locator("nav.tags").get_by_text("#b").click()
        await expect(rows).to_have_count(1)
        await rows.first.locator("summary").click()
        await expect(page.get_by_text("All about it")).to_be_visible()
        bob = await grid.peer("bob")
        await bob.announce(make_dataset("third", ["#b"]))
        await expect(rows).to_have_count(2)
        await expect(page.get_by_text("All about it")).to_be_visible()
        await page.get_by_text("clear filter").click()
        await expect(rows).to_have_count(3)
        assert person.problems == []


async def test_text_of_a_hostile_node_stays_text() -> None:
    async with site() as (grid, http), reader() as person:
        page = person.page
        mallory = await grid.peer("mallory")
        attack = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\">"
        await page.goto(f"{http.url}?token={TOKEN}")
        await mallory.announce(make_dataset(attack, [attack[:90]], description=attack))
        await expect(page.locator("#datasets tbody th summary")).to_have_text(attack)
        await page.locator("#datasets summary").click()
        assert await page.title() == "Grid"
        assert await page.locator("#datasets img, #nodes img, main script").count() == 0
        assert person.problems == []


async def test_traffic_and_links_show_while_they_flow() -> None:
    async with site() as (grid, http), reader() as person:
        page = person.page
        client, alice = await grid.peer("carl", "client"), await grid.peer("alice")
        await page.goto(f"{http.url}?token={TOKEN}")
        mine, theirs = await client.open(alice)
        for _ in range(3):
            await mine.send(bytes(1_000_000))
            await theirs.receive()
        await expect(page.locator("#traffic tbody tr")).to_contain_text(["carl → alice"])
        await expect(page.locator("#traffic tbody tr")).to_contain_text(["3.00 MB"])
        await mine.close()
        await expect(page.locator("#traffic")).to_contain_text("No links are open")
        assert person.problems == []


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
async def test_nothing_is_wider_than_the_window(width: int) -> None:
    async with site() as (grid, http), reader(width=width) as person:
        page = person.page
        alice = await grid.peer("a-node-with-a-name-that-is-as-long-as-a-name-may-be-" + "x" * 10)
        longest = "host." * 49 + "host:65535"
        await alice.announce(make_dataset("d" * 200, ["#" + "t" * 99], description="x" * 500), address=longest)
        await page.goto(f"{http.url}?token={TOKEN}")
        await expect(page.locator("#live")).to_have_text("live")
        await page.locator("#datasets summary").click()
        assert await page.evaluate("document.documentElement.scrollWidth") <= width


async def test_the_page_says_when_the_gateway_is_gone() -> None:
    async with site() as (grid, http), reader() as person:
        await person.page.goto(f"{http.url}?token={TOKEN}")
        await expect(person.page.locator("#live")).to_have_text("live")
        await grid.gateway.stop()
        await expect(person.page.locator("#live")).to_have_text(re.compile("reconnecting"))


@contextlib.asynccontextmanager
async def process(*arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, dict[str, str]]]:
    """`grid` with these arguments as a process of its own, and what it said when it was ready."""
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "grid", *arguments, "--json", stdout=asyncio.subprocess.PIPE
    )
    try:
        assert started.stdout is not None
        ready: dict[str, str] = json.loads(await started.stdout.readline())
        yield started, ready
    finally:
        if started.returncode is None:
            started.send_signal(signal.SIGTERM)
        await started.communicate()


@pytest.mark.process
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=lambda how: how.name)
async def test_a_node_process_that_is_killed_or_hangs_shows_within_three_seconds(how: signal.Signals) -> None:
    async with (
        process("gateway", "--dev", "--listen", "127.0.0.1:0", "--session-patience-s", "2") as (_, ready),
        process("node", "alice", "--dev", "--gateway", ready["url"]) as (node, _),
        reader() as person,
    ):
        await person.page.goto(ready["dashboard"])
        await expect(person.page.locator("#live")).to_have_text("live")
        await expect(person.page.locator(person.state_of("alice"))).to_have_text("online")
        node.send_signal(how)
        try:
            await expect(person.page.locator(person.state_of("alice"))).to_have_text("offline", timeout=OFFLINE_MS)
        finally:
            if how is signal.SIGSTOP:
                node.send_signal(signal.SIGCONT)
        assert person.problems == []
