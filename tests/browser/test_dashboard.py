"""The dashboard in a real browser, as somebody uses it. Runs with `--browser-tests`, where Chromium is installed.

Whatever a page does, a `Reader` notes what the console says: a test ends with none of it, so with no breach of the content
security policy either.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import pytest
from playwright.async_api import Browser, Page, async_playwright, expect

from grid.gateway.http import HttpServer
from grid.settings import GatewaySettings
from grid.testing.crowd import Crowd, crowd, make_dataset
from grid.wire.messages import ColumnCard, DatasetCard, PolicyCard

TOKEN = "the token of this test"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]

OFFLINE_MS = 3000
"""A killed node must show within this time."""

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]


PAGES = ("/", "/nodes", "/datasets", "/sessions", "/traffic", "/traffic?over=day", "/events", "/jobs")
Scheme = Literal["light", "dark"]


class Reader:
    """A person at a browser. `problems` are what the console and the page complained about, `requests` what was asked for."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.loads = 0
        page.on("console", lambda message: self._said(message.type, message.text))
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("load", lambda _: self._loaded())
        page.on("request", lambda request: self.requests.append(request.url))

    def _said(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.problems.append(text)

    def _loaded(self) -> None:
        self.loads += 1

    async def open(self, url: str) -> None:
        """Go to a page and wait until it is live."""
        await self.page.goto(url)
        await self.live()

    async def live(self) -> None:
        await expect(self.page.locator("#live")).to_have_text("live")

    def state_of(self, node: str) -> str:
        """On `/nodes`: a selector for the state of the node with this name."""
        return f"tr:has(th bdi:text-is('{node}')) .state"


@contextlib.asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            yield started
        finally:
            await started.close()


@contextlib.asynccontextmanager
async def reader(width: int = 1280, height: int = 900, scheme: Scheme = "light", script: bool = True) -> AsyncIterator[Reader]:
    async with browser() as started:
        page = await started.new_page(
            viewport={"width": width, "height": height}, color_scheme=scheme, java_script_enabled=script
        )
        page.set_default_timeout(10_000)
        yield Reader(page)


class Place:
    """A gateway with fake peers on a port. `url` has no slash at its end."""

    def __init__(self, grid: Crowd, http: HttpServer) -> None:
        self.grid = grid
        self.http = http
        self.url = http.url.rstrip("/")
        self.entrance = f"{http.url}?token={TOKEN}"


@contextlib.asynccontextmanager
async def site() -> AsyncIterator[Place]:
    async with crowd(GatewaySettings(dev=True, port=0), token=TOKEN) as grid, HttpServer(grid.gateway) as http:
        yield Place(grid, http)


ATTACK = "<script>owned = 1</script><img src=x onerror=\"owned=1\">"
OUT_OF_ATTRIBUTE = "\" onmouseover=\"owned=1\" autofocus onfocus=\"owned=1\" x='"
AS_LINK = "javascript:owned=1"
IN_SVG = "</title></svg><svg onload=\"owned=1\">"


def hostile_dataset(name: str = ATTACK) -> DatasetCard:
    """A dataset whose every text is an attack."""
    everything = ATTACK + OUT_OF_ATTRIBUTE + IN_SVG
    columns = (
        ColumnCard(name=everything, kind="category", role="feature", categories=(everything, AS_LINK)),
        ColumnCard(name=OUT_OF_ATTRIBUTE, kind="text", role="other"),
        ColumnCard(name=IN_SVG, kind="number", role="target", minimum=0.0, maximum=1.0),
    )
    policy = PolicyCard(release="aggregate", plans="any", min_rows=10, max_elements=5, sinks=(everything,))
    tags = [ATTACK[:90], OUT_OF_ATTRIBUTE[:100], IN_SVG, AS_LINK]
    return make_dataset(name, tags, description=everything, columns=columns, policy=policy)


async def test_a_reader_watches_nodes_come_and_go_without_reloading() -> None:
    async with site() as place, reader() as person:
        page = person.page
        alice = await place.grid.peer("alice")
        await alice.announce(make_dataset("patients", ["#cancer", "#train"], rows=1234), address="10.0.0.1:9001")
        await person.open(place.entrance)
        assert "token" not in page.url
        await expect(page.locator("#health")).to_contain_text("The one node is online")
        await person.open(f"{place.url}/nodes")
        await expect(page.locator(person.state_of("alice"))).to_have_text("online")
        bob = await place.grid.peer("bob")
        await bob.announce(make_dataset("weather", ["#open"]))
        await expect(page.locator(person.state_of("bob"))).to_have_text("online")
        loads = person.loads
        await alice.transport.close()
        await expect(page.locator(person.state_of("alice"))).to_have_text("offline", timeout=OFFLINE_MS)
        assert person.loads == loads
        await person.open(place.url)
        await expect(page.locator("#health")).to_contain_text("1 of 2 nodes is offline")
        await expect(page.locator("#recent-events")).to_contain_text("alice")
        await expect(page.locator("#tiles")).to_contain_text("1 of 2")
        assert person.problems == []


async def test_the_token_form_lets_a_reader_in() -> None:
    async with site() as place, reader() as person:
        page = person.page
        await page.goto(place.url)
        await page.get_by_label("Token").fill("not the token")
        await page.get_by_role("button").click()
        await expect(page.get_by_role("alert")).to_contain_text("not the token")
        await page.get_by_label("Token").fill(TOKEN)
        await page.get_by_role("button").click()
        await expect(page.locator("#health")).to_contain_text("waits for its first node")
        cookies = await page.context.cookies()
        assert [(cookie["httpOnly"], cookie["sameSite"]) for cookie in cookies] == [(True, "Strict")]


async def test_typing_searches_at_the_server_and_tags_filter() -> None:
    async with site() as place, reader() as person:
        page = person.page
        alice = await place.grid.peer("alice")
        await alice.announce(make_dataset("first", ["#a", "#b"], description="All about foxes"), make_dataset("second", ["#a"]))
        await page.goto(place.entrance)
        await person.open(f"{place.url}/datasets")
        rows, loads = page.locator("#list tbody tr"), person.loads
        await expect(rows).to_have_count(2)
        await page.get_by_label("Search datasets").press_sequentially("FOX")
        await expect(rows).to_have_count(1)
        assert page.url.endswith("/datasets?q=FOX") and person.loads == loads
        await expect(page.get_by_label("Search datasets")).to_be_focused()
        bob = await place.grid.peer("bob")
        await bob.announce(make_dataset("third", ["#b"], description="Fox tails"), make_dataset("fourth", ["#b"]))
        await expect(rows).to_have_count(2)  # The search stays while the page lives.
        await page.get_by_label("Search datasets").fill("nothing such")
        await expect(page.locator("#list")).to_contain_text("No dataset of a connected node matches “nothing such”")
        await page.get_by_text("Show all datasets").click()
        await expect(rows).to_have_count(4)
        await page.locator("nav.tags").get_by_text("#b").click()
        await expect(rows).to_have_count(3)
        await page.get_by_text("clear filter").click()
        await expect(rows).to_have_count(4)
        assert person.problems == []


async def test_a_reader_turns_pages_and_sorts_with_the_keyboard() -> None:
    async with site() as place, reader() as person:
        page = person.page
        alice = await place.grid.peer("alice")
        await alice.announce(*(make_dataset(f"set-{number:03}") for number in range(120)))
        await place.grid.peer("bob")
        await page.goto(place.entrance)
        await person.open(f"{place.url}/datasets")
        rows = page.locator("#list tbody tr")
        await expect(rows).to_have_count(50)
        await page.get_by_role("link", name="Next").focus()
        await page.keyboard.press("Enter")
        await expect(rows.first).to_contain_text("set-050")
        await page.get_by_role("link", name="Next").click()
        await expect(rows).to_have_count(20)
        await expect(page.locator(".pager")).to_contain_text("101–120 of 120 datasets")
        await page.go_back()
        await expect(rows.first).to_contain_text("set-050")
        await person.open(f"{place.url}/nodes?sort=name")
        await page.get_by_role("link", name="Datasets").nth(1).click()
        await expect(page.locator("th[aria-sort=descending]")).to_have_text("Datasets")
        await expect(rows.first).to_contain_text("alice")
        await page.keyboard.press("Tab")
        await expect(page.get_by_text("Skip to content")).to_be_focused()
        assert person.problems == []


async def test_a_reader_goes_from_a_node_to_its_dataset_and_copies_the_snippet() -> None:
    async with site() as place, reader() as person:
        page = person.page
        await page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=place.url)
        alice = await place.grid.peer("alice")
        await alice.announce(make_dataset("patients", ["#a"], description="All of them"), address="10.0.0.1:9001")
        await page.goto(place.entrance)
        await person.open(f"{place.url}/nodes")
        await page.get_by_role("link", name="alice").click()
        await expect(page.locator("#who")).to_contain_text("10.0.0.1:9001")
        assert (await page.locator(".finger").inner_text()).replace("\n", "").replace(" ", "") == alice.id
        await page.get_by_role("link", name="patients").click()
        await expect(page.locator("#page")).to_contain_text("at least 10 rows")
        assert await page.locator(".mock tbody tr").count() == 5
        await page.get_by_role("button", name="Copy").click()
        await expect(page.get_by_role("button", name="Copied")).to_be_visible()
        copied = await page.evaluate("navigator.clipboard.readText()")
        assert "ds = g.nodes['alice'].datasets['patients']" in copied and "Cop" not in copied
        await alice.transport.close()
        await expect(page.locator(".crumb")).to_contain_text("offline")  # Described as it was announced last.
        assert person.problems == []


async def test_text_of_a_hostile_node_stays_text_on_every_page() -> None:
    async with site() as place, reader() as person:
        page = person.page
        await person.open(place.entrance)
        mallory = await place.grid.peer("mallory")
        attacks = [hostile_dataset(name) for name in (ATTACK, OUT_OF_ATTRIBUTE, IN_SVG, AS_LINK)]
        await mallory.announce(*attacks)
        place.grid.gateway.events.add("error", ATTACK + OUT_OF_ATTRIBUTE + IN_SVG, peer=mallory.id, name=ATTACK, role="node")
        await expect(page.locator("#recent-events")).to_contain_text("<script>")  # It came in over the stream.
        links = ["/nodes/mallory", *PAGES]
        await page.goto(f"{place.url}/datasets")
        for link in await page.locator("#list tbody th a").all():
            links.append(await link.get_attribute("href") or "")
        links.append(await page.locator("nav.tags a").first.get_attribute("href") or "")
        assert len(links) == len(PAGES) + 6
        for link in links:
            assert link.startswith("/")
            await person.open(place.url + link)
            await mallory.announce(*attacks)
            await page.mouse.move(300, 400)
            await page.mouse.move(600, 500)
            assert await page.evaluate("window.owned") is None
            for strange in ("script", "img", "iframe", "style", "[onload]", "[onerror]", "[onmouseover]", "[onfocus]"):
                assert await page.locator(f"main {strange}").count() == 0
            assert await page.locator("a[href^='javascript']").count() == 0
            assert await page.evaluate("document.querySelectorAll('main svg svg').length") == 0
        assert person.problems == []


async def test_inline_scripts_and_other_origins_are_refused_by_the_policy() -> None:
    async with site() as place, reader() as person:
        await person.open(place.entrance)
        for attempt in (
            "const s = document.createElement('script'); s.textContent = 'window.owned = 1'; document.body.append(s)",
            "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.owned = 1\">')",
            "document.body.setAttribute('style', 'color: red')",
            "fetch('http://localhost:9/x').catch(() => 0)",
        ):
            await person.page.evaluate(f"() => {{ {attempt} }}")
        await person.page.wait_for_function("1")
        assert await person.page.evaluate("window.owned") is None
        assert await person.page.evaluate("getComputedStyle(document.body).color") != "rgb(255, 0, 0)"
        assert len([problem for problem in person.problems if "Content Security Policy" in problem]) >= 4


async def test_sessions_and_traffic_show_while_they_flow() -> None:
    async with site() as place, reader() as person:
        page = person.page
        client, alice = await place.grid.peer("carl", "client"), await place.grid.peer("alice")
        await page.goto(place.entrance)
        await person.open(f"{place.url}/sessions")
        mine, theirs = await client.open(alice)
        for _ in range(3):
            await mine.send(bytes(1_000_000))
            await theirs.receive()
        row = page.locator("#list tbody tr")
        await expect(row).to_contain_text(["carl → alice"])
        await expect(row).to_contain_text(["3.00 MB"])
        await person.open(f"{place.url}/traffic")
        await expect(page.locator("#totals")).to_contain_text("3.00 MB")
        await expect(page.locator("svg[role=img] .line")).to_have_count(3)
        await expect(page.get_by_role("img", name="Bytes a second since 10 min ago")).to_contain_text("at most")
        await page.get_by_text("Show as a table").click()
        await expect(page.locator(".samples tbody tr").first).to_be_visible()
        await mine.send(bytes(1_000_000))
        await theirs.receive()
        await expect(page.locator("#totals")).to_contain_text("4.00 MB")
        await expect(page.locator(".samples tbody tr").first).to_be_visible()  # What was opened stays open.
        await person.open(f"{place.url}/sessions")
        await mine.close()
        await expect(page.locator("#list")).to_contain_text("No sessions are open")
        assert person.problems == []


async def test_events_are_filtered_by_kind() -> None:
    async with site() as place, reader() as person:
        page = person.page
        alice = await place.grid.peer("alice")
        await page.goto(place.entrance)
        await person.open(f"{place.url}/events")
        await expect(page.locator(".log li")).to_have_count(1)
        await alice.announce(make_dataset())
        await expect(page.locator(".log li")).to_have_count(2)
        await page.get_by_role("link", name="Announced").click()
        await expect(page.locator(".log li")).to_have_count(1)
        await page.get_by_label("Search events").fill("bob")
        await expect(page.locator("#list")).to_contain_text("No event of the kind “announced” matches “bob”")
        assert person.problems == []


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
async def test_nothing_is_wider_than_the_window(width: int) -> None:
    name = "a-node-with-a-name-that-is-as-long-as-a-name-may-be-" + "x" * 12
    async with site() as place, reader(width=width) as person:
        page = person.page
        alice, client = await place.grid.peer(name), await place.grid.peer("carl-" + "y" * 59, "client")
        long = hostile_dataset("d" * 200)
        many = tuple(ColumnCard(name=f"column {number}" * 10, kind="number", role="feature") for number in range(40))
        longest = "host." * 49 + "host:65535"
        await alice.announce(dataclasses.replace(long, tags=("#" + "t" * 99,), columns=many), long_name(), address=longest)
        await client.open(alice)
        place.grid.gateway.events.add("error", "z" * 200, peer=alice.id, name=name, role="node")
        await page.goto(place.entrance)
        for path in (*PAGES, f"/nodes/{name}", f"/datasets/{name}/{'d' * 200}", "/nodes?q=" + "w" * 150):
            await person.open(place.url + path)
            assert await page.evaluate("document.documentElement.scrollWidth") <= width, path
        assert person.problems == []


def long_name() -> DatasetCard:
    return make_dataset("long", ["#" + "u" * 90, "#v"], description="w" * 9000)


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_text_can_be_read_in_both_themes(scheme: Scheme) -> None:
    async with site() as place, reader(scheme=scheme) as person:
        alice, sets = await place.grid.peer("alice"), list[DatasetCard]()
        for number, release in enumerate(("deny", "aggregate", "approve", "open")):
            policy = PolicyCard(release=release, plans="any", min_rows=1, max_elements=1)
            sets.append(make_dataset(f"set{number}", ["#a"], policy=policy))
        await alice.announce(*sets)
        await (await place.grid.peer("bob")).transport.close()
        place.grid.gateway.events.add("error", "it failed", peer=alice.id, name="alice", role="node")
        place.grid.gateway.events.add("refused", "a stranger")
        await person.page.goto(place.entrance)
        grounds = set()
        for path in (*PAGES, "/nodes/alice", "/datasets/alice/set1", "/datasets?tag=%23a"):
            await person.open(place.url + path)
            assert await person.page.evaluate(LOW_CONTRAST) == [], path
            grounds.add(await person.page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert len(grounds) == 1 and (sum(map(int, re.findall(r"\d+", grounds.pop()))) > 380) == (scheme == "light")
        assert person.problems == []


LOW_CONTRAST = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const channel = (value) => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const ground = (item) => {
    for (; item; item = item.parentElement) {
      const [r, g, b, a] = parse(getComputedStyle(item).backgroundColor);
      if (a === undefined || a === 1) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const faults = [];
  for (const item of document.querySelectorAll("body *")) {
    const own = Array.from(item.childNodes).some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !item.checkVisibility() || item.closest("svg, .off, .unseen, .skip")) continue;
    const [one, other] = [light(parse(getComputedStyle(item).color)), light(ground(item))].sort((a, b) => b - a);
    const ratio = (one + 0.05) / (other + 0.05);
    if (ratio < 4.5) faults.push(`${item.className} ${item.textContent.slice(0, 30)} ${ratio.toFixed(2)}`);
  }
  return faults;
}"""
"""Texts whose contrast is below 4.5 to 1, which WCAG's level AA asks for; what cannot be chosen is exempt."""


async def test_everything_can_be_read_without_javascript() -> None:
    async with site() as place, reader(script=False) as person:
        page = person.page
        alice = await place.grid.peer("alice")
        await alice.announce(make_dataset("patients", ["#a"]), make_dataset("other"))
        await page.goto(place.entrance)
        for path in PAGES:
            await page.goto(place.url + path)
            await expect(page.locator("h1")).to_be_visible()
        await page.goto(f"{place.url}/datasets")
        await page.get_by_label("Search datasets").fill("pati")
        await page.get_by_role("button", name="Search").click()
        await expect(page.locator("#list tbody tr")).to_have_count(1)
        await page.get_by_role("link", name="patients").click()
        await expect(page.locator("h1")).to_have_text("patients")


async def test_a_page_out_of_sight_costs_nothing_and_catches_up() -> None:
    async with site() as place, reader() as person, reader() as witness:
        page = person.page
        for one in (person, witness):
            await one.page.goto(place.entrance)
            await one.open(f"{place.url}/nodes")
        async with page.expect_event("requestfailed", lambda request: "/events/stream" in request.url):
            await page.evaluate(HIDE, True)
        asked = len(person.requests)
        for name in ("alice", "bob"):  # the second one comes to the witness after the first would have come to both
            await place.grid.peer(name)
            await expect(witness.page.locator(witness.state_of(name))).to_have_text("online")
        assert len(person.requests) == asked and await page.locator(person.state_of("alice")).count() == 0
        await page.evaluate(HIDE, False)
        await expect(page.locator(person.state_of("alice"))).to_have_text("online")
        assert person.problems == []


HIDE = """(hidden) => {
  Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
  document.dispatchEvent(new Event("visibilitychange"));
}"""
"""What a browser does when a tab goes out of sight; headless ones have no other tab to show."""


async def test_the_page_says_when_the_gateway_is_gone() -> None:
    async with site() as place, reader() as person:
        await person.open(place.entrance)
        await place.grid.gateway.stop()
        await expect(person.page.locator("#live")).to_have_text(re.compile("reconnecting"))


@contextlib.asynccontextmanager
async def process(*arguments: str, token: str = "") -> AsyncIterator[tuple[asyncio.subprocess.Process, dict[str, str]]]:
    """`grid` with these arguments as a process of its own, and what it said when it was ready."""
    environment = {**os.environ, "GRID_TOKEN": token} if token else None
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "grid", *arguments, "--json", stdout=asyncio.subprocess.PIPE, env=environment
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
        await person.open(f"{ready['dashboard'].partition('?')[0]}nodes")
        await expect(person.page.locator(person.state_of("alice"))).to_have_text("online")
        node.send_signal(how)
        try:
            await expect(person.page.locator(person.state_of("alice"))).to_have_text("offline", timeout=OFFLINE_MS)
        finally:
            if how is signal.SIGSTOP:
                node.send_signal(signal.SIGCONT)
        assert person.problems == []


async def run_python(code: str) -> list[str]:
    """What a program prints, in words without the table's head."""
    ran = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    printed, _ = await ran.communicate()
    assert ran.returncode == 0
    return printed.decode().partition("\n")[2].split()


GATEWAY = ("gateway", "--dev", "--session-patience-s", "2")


def data_folder(folder: Path) -> Path:
    """A data folder with one dataset, as an owner would write it."""
    rows = [f"{20 + row % 60},{'yes' if row % 3 else 'no'}" for row in range(60)]
    (folder / "patients.csv").write_text("\n".join(["age,ill", *rows]) + "\n")
    (folder / "patients.toml").write_text(DESCRIPTION)
    return folder


DESCRIPTION = """
description = "Patients of site A"
file = "patients.csv"
tags = ["#demo"]
target = "ill"

[policy]
release = "aggregate"
plans = "any"

[columns.age]
min = 0
max = 110

[columns.ill]
categories = ["no", "yes"]
"""


@pytest.mark.process
async def test_a_page_lives_on_after_the_gateway_was_killed_and_started_again(tmp_path: Path) -> None:
    """With real processes: a node's dataset shows, the gateway is killed, and the same page is live again with the same node."""
    async with contextlib.AsyncExitStack() as stack:
        person = await stack.enter_async_context(reader())
        page = person.page
        token = "a-token-of-sixteen-or-more"
        first = process(*GATEWAY, "--listen", "127.0.0.1:0", token=token)
        gateway, ready = await stack.enter_async_context(first)
        await stack.enter_async_context(
            process("node", "alice", "--dev", "--gateway", ready["url"], "--data", str(data_folder(tmp_path)))
        )
        root = ready["dashboard"].partition("?")[0]
        await page.goto(f"{root}?token={token}")
        await person.open(f"{root}datasets")
        await page.get_by_role("link", name="patients").click()
        await expect(page.locator("#page")).to_contain_text("Patients of site A")
        await expect(page.locator("#page")).to_contain_text("0 to 110")
        shown = await page.locator(".mock tbody tr").first.locator("td").all_inner_texts()
        printed = await run_python(await page.locator("pre code").inner_text())
        assert [f"{float(shown[0]):.1f}", shown[1]] == [f"{float(printed[1]):.1f}", printed[2]]
        assert "tensor([" in printed[-1]  # A result left the node, as the policy says.
        await person.open(f"{root}nodes")
        await expect(page.locator(person.state_of("alice"))).to_have_text("online")
        loads = person.loads
        gateway.send_signal(signal.SIGKILL)
        await expect(page.locator("#live")).to_have_text("reconnecting…")
        address = root.removeprefix("http://").rstrip("/")
        await stack.enter_async_context(process(*GATEWAY, "--listen", address, token=token))
        await expect(page.locator("#live")).to_have_text("live", timeout=20_000)
        await expect(page.locator(person.state_of("alice"))).to_have_text("online", timeout=30_000)
        assert person.loads == loads
        unexpected = [problem for problem in person.problems if "ERR_" not in problem]
        assert unexpected == []  # The browser itself reports each connection that was refused meanwhile.
