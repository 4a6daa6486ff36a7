"""The pages as a program reads them: what is on them, that nothing of a peer gets out of its text, headers, odd names."""

from __future__ import annotations

import ast
import dataclasses
import html
import re
from urllib.parse import quote

import pytest
from gateway_site import BEARER, site

from grid.client.mock import make_mock
from grid.gateway.dashboard import dataset_link, show_cell
from grid.gateway.explain import explain, snippet
from grid.testing.crowd import make_dataset
from grid.wire.messages import ColumnCard, DatasetCard, PolicyCard

PAGES = ("/", "/nodes", "/datasets", "/sessions", "/traffic", "/traffic?over=day", "/events", "/jobs")

HOSTILE = "<script>alert('x')</script>"
ATTRIBUTE = "\" onmouseover=\"alert(1)\" x='"
TEMPLATE = "{{ 7 * 7 }}{% raw %}"


def hostile_dataset() -> DatasetCard:
    """A dataset whose every text is an attack."""
    text = HOSTILE + ATTRIBUTE + TEMPLATE
    columns = (
        ColumnCard(name=text, kind="category", role="feature", categories=(text, ATTRIBUTE)),
        ColumnCard(name=ATTRIBUTE, kind="text", role="other"),
    )
    policy = PolicyCard(release="aggregate", plans="any", min_rows=10, max_elements=5, sinks=(text,))
    return make_dataset(text, [HOSTILE, ATTRIBUTE, TEMPLATE], description=text + "\u202e", columns=columns, policy=policy)


def text_of(page: str) -> str:
    """What a reader sees of a page, in one line."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


async def test_text_of_peers_is_escaped_on_every_page() -> None:
    async with site() as made:
        alice, card = await made.grid.peer("alice"), hostile_dataset()
        await alice.announce(card)
        made.grid.gateway.events.add("error", HOSTILE + ATTRIBUTE, peer=alice.id, name=HOSTILE, role="node")
        found = f"/datasets?tag={quote(HOSTILE)}&q={quote(ATTRIBUTE)}"
        for path in (*PAGES, found, "/nodes/alice", dataset_link("alice", card.name), f"/events?q={quote(HOSTILE)}"):
            status, page, _ = await made.get(path)
            assert status == 200
            assert "<script>alert" not in page and '" onmouseover' not in page and " 49" not in page
            if path not in ("/nodes", "/sessions", "/jobs", "/traffic", "/traffic?over=day"):
                assert "&lt;script&gt;" in page
        status, body, response = await made.get("/api/v1/datasets")
        assert response.content_type == "application/json" and body["datasets"][0]["name"] == card.name


async def test_what_readers_type_is_escaped() -> None:
    async with site() as made:
        for path in ("/nodes", "/datasets", "/sessions", "/events", "/jobs"):
            status, page, _ = await made.get(f"{path}?q={quote(HOSTILE + ATTRIBUTE)}")
            assert status == 200 and "<script>alert" not in page and '" onmouseover' not in page
        headers = {"Accept": "text/html", "Authorization": "Bearer wrong"}
        status, page, _ = await made.get(f"/nodes/{quote(HOSTILE)}", headers=headers)
        assert status == 401 and "alert" not in page


async def test_every_answer_carries_the_security_headers() -> None:
    async with site() as made:
        alice = await made.grid.peer("alice")
        await alice.announce(make_dataset())
        further = ("/nodes/alice", "/datasets/alice/patients", "/?token=wrong", "/static/dashboard.js")
        for path in (*PAGES, *further, "/api/v1/status", "/api/v1/nowhere", "/metrics", "/healthz"):
            _, page, response = await made.get(path)
            policy = response.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy and "data:" not in policy
            for rule in ("script-src 'self'", "style-src 'self'", "connect-src 'self'", "frame-ancestors 'none'"):
                assert rule in policy
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert response.headers["Referrer-Policy"] == "same-origin"
            assert response.headers["Cross-Origin-Opener-Policy"] == "same-origin"
            assert "camera=()" in response.headers["Permissions-Policy"]
            assert response.headers["Cache-Control"] in ("no-store", "no-cache")
            assert "Access-Control-Allow-Origin" not in response.headers
            if response.content_type == "text/html":
                inline = r"<script(?! src=\"/static/)|\son\w+=|\sstyle=|<style|(?:src|href|action)=\"(?![/#])"
                assert not re.search(inline, str(page))


async def test_an_empty_grid_says_what_to_do_next() -> None:
    async with site() as made:
        for path in ("/", "/nodes"):
            _, page, _ = await made.get(path)
            assert f"grid node alice --gateway {made.http.socket_url} --data ./data --dev" in page
        for path, words in {
            "/datasets": "A node lists what its --data folder holds",
            "/datasets?tag=%23none": "Show all datasets",
            "/nodes?q=none": "Show all nodes",
            "/sessions": f'grid.connect("{made.http.socket_url}")',
            "/sessions?q=none": "Show all sessions",
            "/events": "Nothing has happened yet",
            "/events?kind=error": "Show all events",
        }.items():
            assert words in text_of((await made.get(path))[1])


async def test_what_is_not_there_is_a_page_for_people_and_json_for_programs() -> None:
    async with site() as made:
        alice = await made.grid.peer("alice")
        await alice.announce(make_dataset())
        await alice.transport.close()
        await made.grid.changed(lambda: made.grid.gateway.views.status(0)["nodes"]["offline"] == 1)
        nowhere = {"/nodes/bob": "knows no node", "/datasets/alice/scans": "no dataset of that name", "/x": "nothing at this"}
        status, page, _ = await made.get("/datasets/alice/patients", headers={**BEARER, "Accept": "text/html"})
        assert status == 200 and "as it was announced last" in text_of(page)
        for path, words in nowhere.items():
            status, page, _ = await made.get(path, headers={**BEARER, "Accept": "text/html"})
            assert status == 404 and words in text_of(page) and "To the dashboard" in page
            status, body, _ = await made.get(path)
            assert status == 404 and body["error"]["code"] == "not-found"


ODD_NAMES = [
    "a/b", "a%2Fb", "%", "?q=1#x", "a b+c", "...", "é\U0001f600", "a\\b", "'\"<&>", "..%2f..", "a;b:c@d", "{a}", "x" * 200
]  # fmt: skip


@pytest.mark.parametrize("name", ODD_NAMES)
async def test_a_dataset_of_any_name_has_its_page(name: str) -> None:
    async with site() as made:
        alice = await made.grid.peer("alice")
        await alice.announce(make_dataset("other"), make_dataset(name))
        _, page, _ = await made.get("/datasets")
        (link,) = (one for one in re.findall(r'href="(/datasets/[^"]+)"', page) if not one.endswith("/other"))
        status, page, _ = await made.get(html.unescape(link))
        (title,) = re.findall(r"<h1><bdi>(.*)</bdi></h1>", page)
        assert status == 200 and html.unescape(title) == name


async def test_lists_are_searched_sorted_and_paged() -> None:
    async with site() as made:
        for number in range(3):
            peer = await made.grid.peer(f"node-{number}")
            sets = [make_dataset(f"set-{number}-{one:02}", ["#even"] if one % 2 == 0 else []) for one in range(20 * number)]
            await peer.announce(*sets)
        _, page, _ = await made.get("/nodes?sort=datasets")
        assert re.findall(r'<a href="/nodes/(node-\d)"', page) == ["node-2", "node-1", "node-0"]
        assert 'aria-sort="descending"' in page
        _, page, _ = await made.get("/nodes?q=NODE-1")
        assert re.findall(r'<a href="/nodes/(node-\d)"', page) == ["node-1"]
        _, page, _ = await made.get("/datasets")
        assert "1–50 of 60 datasets" in text_of(page) and "page 1 of 2" in page
        _, page, _ = await made.get("/datasets?page=2")
        assert "51–60 of 60 datasets" in text_of(page)
        _, page, _ = await made.get("/datasets?q=set-2&tag=%23even")
        assert "20 datasets" in text_of(page) and 'name="tag" value="#even"' in page


async def test_the_page_of_a_node_tells_who_it_is_and_what_it_moves() -> None:
    async with site() as made:
        alice, client = await made.grid.peer("alice"), await made.grid.peer("carl", "client")
        await alice.announce(make_dataset("patients", ["#a"], description="All of them"), address="10.0.0.1:9001")
        mine, theirs = await client.open(alice)
        await mine.send(bytes(5000))
        await theirs.receive()
        _, page, _ = await made.get("/nodes/alice")
        text = text_of(page)
        assert alice.id in text.replace(" ", "") and "10.0.0.1:9001" in text and "All of them" in text
        assert "0 B sent, 5.00 kB received" in text and "carl → alice" in text and "announced alice node · 1 dataset" in text
        assert (await made.get(f"/nodes/{alice.id}"))[0] == 200
        _, page, _ = await made.get("/sessions")
        assert "5.00 kB" in text_of(page) and "carl" in page and client.id in page


async def test_the_page_of_a_dataset_shows_schema_policy_and_mock_rows_of_the_card() -> None:
    columns = (
        ColumnCard(name="age", kind="number", role="feature", minimum=0.0, maximum=110.0),
        ColumnCard(name="home", kind="category", role="target", categories=("own", "rent"), missing="category"),
    )
    card = make_dataset("patients", ["#a"], columns=columns, description="All of them", target_dtype="i8", classes=2)
    async with site() as made:
        alice = await made.grid.peer("alice")
        await alice.announce(card)
        _, page, _ = await made.get("/datasets/alice/patients")
        text = text_of(page)
        assert "age number 0 to 110 feature not allowed" in text and "home category 2 values own rent target" in text
        assert "features (100, 1) f4, targets (100,) i8, 2 classes" in text
        assert explain(card).sentence in text and "Results of built-in statistics" in text
        mock = make_mock(card, card.rows)
        shown = [show_cell(value) for row in mock.head(5).itertuples(index=False) for value in row]
        assert " ".join(shown) in text
        assert f"g = grid.connect({made.http.socket_url!a})" in html.unescape(page)


@pytest.mark.parametrize("release", ["deny", "aggregate", "approve", "open"])
@pytest.mark.parametrize("plans", ["builtin", "any"])
def test_policies_are_told_in_words(release: str, plans: str) -> None:
    policy = PolicyCard(release=release, plans=plans, min_rows=25, max_elements=1200, share=False)
    told = explain(make_dataset(policy=policy))
    everything = " ".join([told.sentence, *told.may, *told.may_not])
    assert (release == "open") == (not told.may_not) and told.may
    assert ("25 rows" in everything) == (release == "aggregate")
    assert ("Single rows" in " ".join(told.may_not)) == (release == "aggregate")
    assert (release == "approve") == ("approved, each once" in " ".join(told.may))  # `grid approve` is there to be used
    assert (release == "open") or "secure sum" in " ".join(told.may_not)


def test_the_snippet_is_python_whatever_the_names_are() -> None:
    name = "it's \"q\" \\ \u2028 é"
    for listed in (True, False):
        code = snippet(dataclasses.replace(make_dataset(), name=name), "alice", "ws://h:1", dev=False, listed=listed)
        literals = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
        assert name in literals and "TOKEN" in literals and ("g.search" in code) == (not listed)
