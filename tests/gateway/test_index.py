"""The index against the plainest way of searching, whatever comes and goes."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from grid.gateway.index import MAX_WORDS, Index, words_of
from grid.gateway.registry import ConnectionId, Entry
from grid.ids import PeerId
from grid.testing.crowd import make_dataset

TAGS = ["#a", "#b", "#c"]
WORDS = ["red", "Red fox", "fox", "ﬁne", "STRASSE", "straße"]

descriptions = st.lists(st.tuples(st.sampled_from(WORDS), st.lists(st.sampled_from(TAGS), max_size=3)), max_size=3)
steps = st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["add", "remove", "offline"]), descriptions), max_size=20)


def entry(number: int, online: bool, described: list[tuple[str, list[str]]]) -> Entry:
    datasets = tuple(make_dataset(f"set{place}", tags, description=text) for place, (text, tags) in enumerate(described))
    name = ["zoe", "Alice", "bob", "alice"][number]
    connection = ConnectionId(number) if online else None
    return Entry(
        id=PeerId(f"id-{number}"), name=name, organisation="Org", role="node", card=b"", since=0.0, connection=connection,
        datasets=datasets,
    )  # fmt: skip


@settings(max_examples=60)
@given(steps, st.lists(st.sampled_from(TAGS), max_size=2), st.lists(st.sampled_from(WORDS), max_size=2))
def test_it_finds_what_reading_everything_finds(
    done: list[tuple[int, str, list[tuple[str, list[str]]]]], tags: list[str], typed: list[str]
) -> None:
    index, there = Index(), dict[PeerId, Entry]()
    for number, what, described in done:
        one = entry(number, what == "add", described)
        index.remove(there.pop(one.id, one))
        if what != "remove":
            index.add(one)
            there[one.id] = one
    nodes = sorted(there.values(), key=lambda one: (one.name, one.id))
    assert index.nodes() == nodes and len(index) == len(nodes)
    everything = [(one, card) for one in nodes for card in one.datasets]
    listed = [(one, card) for one, card in everything if one.online]
    assert index.online == sum(one.online for one in nodes) and index.datasets == len(listed)
    words = words_of(" ".join(typed))
    for offline in (False, True):
        expected = [
            (one, card)
            for one, card in (everything if offline else listed)
            if set(tags) <= set(card.tags)
            and all(word in f"{card.name} {one.name} {' '.join(card.tags)} {card.description}".casefold() for word in words)
        ]
        assert [(one.entry, one.card) for one in index.find(tags, words, offline=offline)] == expected
    counts = {tag: sum(tag in card.tags for _, card in listed) for tag in TAGS}
    assert dict(index.most_used_tags(9)) == {tag: count for tag, count in counts.items() if count}


def test_nodes_are_found_by_name_organisation_id_and_address() -> None:
    index = Index()
    index.add(entry(1, True, []))
    for typed, found in (("ALI", 1), ("org alice", 1), ("id-1", 1), ("bob", 0), ("", 1), ("alice\norg", 1)):
        assert len(index.nodes(words_of(typed))) == found


def test_a_query_is_bounded() -> None:
    assert len(words_of("a " * 1000)) == MAX_WORDS and len(words_of("x" * 5000)[0]) == 200


def test_words_do_not_reach_from_one_field_into_the_next() -> None:
    index = Index()
    index.add(entry(2, True, [("red", ["#a"])]))
    assert index.find((), ("set0bob",)) == [] and len(index.find((), ("set0", "bob", "#a", "red"))) == 1
