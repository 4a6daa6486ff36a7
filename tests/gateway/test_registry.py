"""The registry as a plain state machine: presence, names, announcements, search."""

from __future__ import annotations

import dataclasses
import math

import pytest

from grid.errors import InvalidRequest, QuotaExceeded
from grid.gateway import registry as rules
from grid.gateway.announcements import MAX_DESCRIBED
from grid.gateway.registry import ConnectionId, Registry
from grid.ids import PeerId, PlanId
from grid.testing.crowd import make_dataset
from grid.wire.codec import encode
from grid.wire.messages import Announce, ColumnCard, DatasetCard, Found, NodeList


def enter(registry: Registry, connection: int, peer: str, name: str, role: str = "node", now: float = 0.0) -> int | None:
    return registry.enter(
        ConnectionId(connection), peer=PeerId(peer), name=name, organisation="", role=role, card=b"card", now=now
    )


def announce(registry: Registry, peer: str, *datasets: DatasetCard, address: str = "") -> None:
    registry.announce(PeerId(peer), Announce(datasets=datasets, address=address))


def found(registry: Registry, *tags: str, offset: int = 0, limit: int = 1000) -> list[str]:
    page, _ = registry.search(tags, offset, limit)
    return [f"{one.node_name}/{one.dataset.name}" for one in page]


def test_a_node_comes_goes_and_comes_back() -> None:
    registry = Registry()
    assert enter(registry, 1, "id-a", "alice", now=10.0) is None
    announce(registry, "id-a", make_dataset())
    seen = registry.version
    assert registry.leave(ConnectionId(1), PeerId("id-a"), 20.0)
    assert registry.version > seen
    (entry,) = registry.nodes()
    assert (entry.online, entry.since, [one.name for one in entry.datasets]) == (False, 20.0, ["patients"])
    assert found(registry) == found(registry, "#demo") == [] and dict(registry.index.tags) == {}
    ((gone,), total) = registry.search(("#demo",), offline=True)
    assert (gone.node_name, gone.state, gone.since, total) == ("alice", "offline", 20.0, 1)
    assert (registry.cards()[0].state, registry.cards()[0].since) == ("offline", 20.0)
    assert enter(registry, 2, "id-a", "alice", now=30.0) is None
    announce(registry, "id-a", make_dataset())
    assert found(registry, "#demo") == ["alice/patients"]


def test_the_newer_connection_of_a_peer_counts() -> None:
    registry = Registry()
    enter(registry, 1, "id-a", "alice")
    assert enter(registry, 2, "id-a", "alice") == 1
    assert not registry.leave(ConnectionId(1), PeerId("id-a"), 5.0)
    (entry,) = registry.nodes()
    assert entry.connection == 2


def test_a_client_may_have_several_connections() -> None:
    registry = Registry()
    for connection in (1, 2, 3):
        assert enter(registry, connection, "id-c", "carl", role="client") is None
    assert registry.online("client") == 1
    for connection in (3, 1):
        assert not registry.leave(ConnectionId(connection), PeerId("id-c"), 1.0)
        assert registry.online("client") == 1
    assert registry.leave(ConnectionId(2), PeerId("id-c"), 1.0)
    assert registry.online("client") == 0


def test_the_connections_of_a_client_are_bounded_and_one_that_ends_frees_a_place() -> None:
    registry = Registry()
    for connection in range(rules.MAX_CONNECTIONS):
        enter(registry, connection, "id-c", "carl", role="client")
    with pytest.raises(QuotaExceeded, match="16 connections"):
        enter(registry, 99, "id-c", "carl", role="client")
    registry.leave(ConnectionId(3), PeerId("id-c"), 1.0)
    enter(registry, 99, "id-c", "carl", role="client")


def test_an_identity_that_is_connected_cannot_change_its_role() -> None:
    registry = Registry()
    enter(registry, 1, "id-c", "carl", role="client")
    with pytest.raises(InvalidRequest, match="as a client"):
        enter(registry, 2, "id-c", "carl", role="node")


def test_a_name_belongs_to_the_connected_node_that_has_it() -> None:
    registry = Registry()
    enter(registry, 1, "id-a", "alice")
    with pytest.raises(InvalidRequest, match="another name"):
        enter(registry, 2, "id-b", "alice")
    enter(registry, 3, "id-c", "alice", role="client")  # Only nodes are asked for by name.
    registry.leave(ConnectionId(1), PeerId("id-a"), 1.0)
    enter(registry, 4, "id-b", "alice")
    assert [entry.id for entry in registry.nodes()] == ["id-b"]


def test_a_peer_that_changes_its_name_frees_the_old_one() -> None:
    registry = Registry()
    enter(registry, 1, "id-a", "alice")
    enter(registry, 2, "id-a", "anna")
    enter(registry, 3, "id-b", "alice")
    assert [entry.name for entry in registry.nodes()] == ["alice", "anna"]


def test_clients_are_forgotten_when_they_leave_and_old_offline_nodes_when_there_are_many() -> None:
    registry = Registry(max_offline=2)
    enter(registry, 1, "id-c", "carl", role="client")
    registry.leave(ConnectionId(1), PeerId("id-c"), 0.0)
    assert registry.get(PeerId("id-c")) is None
    for number in range(4):
        enter(registry, 10 + number, f"id-{number}", f"node{number}")
        registry.leave(ConnectionId(10 + number), PeerId(f"id-{number}"), float(number))
    assert [entry.name for entry in registry.nodes()] == ["node2", "node3"]


def test_search_needs_every_tag_in_one_dataset() -> None:
    registry = Registry()
    enter(registry, 1, "id-b", "bob")
    enter(registry, 2, "id-a", "alice")
    announce(registry, "id-b", make_dataset("x", ["#a", "#b"]), make_dataset("y", ["#a"]))
    announce(registry, "id-a", make_dataset("p", ["#a"]), make_dataset("q", ["#b"]))
    assert found(registry, "#a") == ["alice/p", "bob/x", "bob/y"]
    assert found(registry, "#a", "#b") == ["bob/x"]
    assert found(registry, "#a", "#none") == []
    assert found(registry) == ["alice/p", "alice/q", "bob/x", "bob/y"]
    assert found(registry, "#a", offset=1, limit=1) == ["bob/x"]
    assert [one.dataset.name for one in registry.search(("#a",), words=("bob",))[0]] == ["x", "y"]
    assert registry.search(("#a",), 1, 1)[1] == 3
    assert registry.index.most_used_tags(9) == [("#a", 3), ("#b", 2)]


def test_a_new_announcement_replaces_the_old_one() -> None:
    registry = Registry()
    enter(registry, 1, "id-a", "alice")
    announce(registry, "id-a", make_dataset("p", ["#old"]))
    announce(registry, "id-a", make_dataset("p", ["#new"]))
    assert found(registry, "#old") == [] and found(registry, "#new") == ["alice/p"]


@pytest.mark.parametrize(
    "changes",
    [
        {"name": ""},
        {"name": "x" * 201},
        {"name": "a\u202eb"},
        {"name": ".."},
        {"description": "x" * 10_001},
        {"tags": ("#t" * 60,)},
        {"tags": ("",)},
        {"tags": tuple(f"#{number}" for number in range(65))},
        {"rows": -1},
        {"feature_shape": (1,) * 9},
        {"columns": (ColumnCard(name="c", kind="number", role="feature", minimum=math.inf, maximum=1.0),)},
        {"columns": (ColumnCard(name="c" * 201, kind="number", role="feature"),)},
        {"columns": (ColumnCard(name="c", kind="k" * 60_000, role="feature"),)},
        {"columns": (ColumnCard(name="c", kind="number", role="r" * 60_000),)},
        {"columns": (ColumnCard(name="c", kind="number", role="feature", missing="m" * 60_000),)},
        {"policy": dataclasses.replace(make_dataset().policy, release="r" * 60_000)},
        {"policy": dataclasses.replace(make_dataset().policy, plans="p" * 60_000)},
        {"policy": dataclasses.replace(make_dataset().policy, allow=(PlanId("a" * 60_000),))},
        {"policy": dataclasses.replace(make_dataset().policy, sinks=("s" * 60_000,))},
        {"feature_dtype": "f" * 60_000},
        {"target_dtype": "f3"},
        {"feature_names": tuple(f"feature {number} " + "x" * 300 for number in range(5000))},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_announcements_are_bounded(changes: dict[str, object]) -> None:
    registry = Registry()
    enter(registry, 1, "id-a", "alice")
    announce(registry, "id-a", make_dataset("good", ["#good"]))
    before = registry.version
    with pytest.raises((InvalidRequest, QuotaExceeded)):
        announce(registry, "id-a", make_dataset(), dataclasses.replace(make_dataset("bad"), **changes))
    assert registry.version == before and found(registry) == ["alice/good"]


def test_names_within_a_node_are_unique_and_their_number_is_bounded() -> None:
    registry = Registry(max_datasets=2)
    enter(registry, 1, "id-a", "alice")
    with pytest.raises(InvalidRequest, match="two datasets"):
        announce(registry, "id-a", make_dataset("same"), make_dataset("same"))
    with pytest.raises(QuotaExceeded, match="at most 2"):
        announce(registry, "id-a", *(make_dataset(f"d{number}") for number in range(3)))


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:80/admin?all=1",
        "ws://user:pw@host:1/y?z",
        "user@host:80",
        "host",
        "host:0",
        "host:70000",
        "0.0.0.0:80",
        "[::]:80",
        "host:80#",
        "ho st:80",
        "2130706433:80",
        "host:8０",
    ],
)
def test_an_address_is_a_host_and_a_port_and_nothing_else(address: str) -> None:
    registry = Registry()
    enter(registry, 1, "id-a", "alice")
    announce(registry, "id-a", address="alice.example:9001")
    with pytest.raises(InvalidRequest):
        announce(registry, "id-a", make_dataset(), address=address)
    (entry,) = registry.nodes()
    assert (entry.address, entry.datasets) == ("alice.example:9001", ())


def test_only_nodes_announce() -> None:
    registry = Registry()
    enter(registry, 1, "id-c", "carl", role="client")
    with pytest.raises(InvalidRequest, match="only nodes"):
        announce(registry, "id-c", make_dataset())


def test_replies_fit_a_message_whatever_nodes_announce() -> None:
    registry = Registry()
    huge = [make_dataset(f"d{number}", description="é" * 10_000) for number in range(24)]
    for number in range(12):
        enter(registry, number + 1, f"id-{number:02}", f"node{number:02}")
        announce(registry, f"id-{number:02}", *huge)
    cards = registry.cards()
    assert len(cards) == 12 and cards[0].datasets and not cards[-1].datasets
    assert {card.dataset_count for card in cards} == {24}
    assert [registry.lists_datasets_of(entry) for entry in registry.nodes()] == [bool(card.datasets) for card in cards]
    encode(NodeList(nodes=cards))
    seen: list[str] = []
    while True:
        page, total = registry.search((), len(seen), 1000)
        encode(Found(datasets=tuple(page), total=total))
        seen += [f"{one.node_name}/{one.dataset.name}" for one in page]
        if len(seen) == total:
            break
        assert page, "a page of nothing would never end"
    assert len(set(seen)) == 12 * 24


def test_a_list_of_many_nodes_fits_a_message_and_the_offline_ones_give_way() -> None:
    registry = Registry(max_offline=2000)
    for number in range(1500):
        peer = PeerId(f"id-{number:04}")
        name, card = f"node{number:04}", bytes(4096)
        registry.enter(ConnectionId(number), peer=peer, name=name, organisation="o" * 200, role="node", card=card, now=0.0)
        if number < 1200:
            registry.leave(ConnectionId(number), peer, 1.0)
    cards = registry.cards()
    encode(NodeList(nodes=cards))
    assert sum(card.state == "online" for card in cards) == 300 and 300 < len(cards) < 1500


def test_a_forgotten_peer_is_gone_from_every_index() -> None:
    registry = Registry()
    enter(registry, 1, "id-a", "alice")
    announce(registry, "id-a", make_dataset())
    registry.forget(PeerId("id-a"))
    assert registry.nodes() == [] and found(registry, "#demo") == [] and dict(registry.index.tags) == {}
    assert not registry.leave(ConnectionId(1), PeerId("id-a"), 1.0)
    enter(registry, 2, "id-b", "alice")
    announce(registry, "id-b", make_dataset("p", ["#other"]))
    assert set(registry.index.tags) == {"#other"}


def test_one_dataset_always_fits_a_page() -> None:
    assert MAX_DESCRIBED < rules.MAX_REPLY


def test_too_many_offline_nodes_and_too_much_of_them_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "MAX_OFFLINE_BYTES", 600)
    registry = Registry(max_offline=2)
    for number in range(4):
        enter(registry, number, f"id-{number}", f"node{number}")
        announce(registry, f"id-{number}", make_dataset(f"d{number}", description="x" * 300))
        registry.leave(ConnectionId(number), PeerId(f"id-{number}"), float(number))
    assert [(entry.name, len(entry.datasets)) for entry in registry.nodes()] == [("node2", 0), ("node3", 1)]
    assert [one.dataset.name for one in registry.search((), offline=True)[0]] == ["d3"]


def test_one_large_node_that_leaves_takes_the_room_of_many_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "MAX_OFFLINE_BYTES", 2000)
    registry = Registry()
    for number, letters in enumerate([10, 10, 10, 10, 1500, 1500]):
        enter(registry, number, f"id-{number}", f"node{number}")
        announce(registry, f"id-{number}", make_dataset("d", description="x" * letters))
        registry.leave(ConnectionId(number), PeerId(f"id-{number}"), float(number))
        assert sum(sum(entry.sizes.values()) for entry in registry.nodes()) <= 2000
    assert [bool(entry.datasets) for entry in registry.nodes()] == [False] * 5 + [True]


def test_what_nodes_say_alike_is_kept_once() -> None:
    registry = Registry()
    for number in range(2):
        enter(registry, number, f"id-{number}", f"node{number}")
        announce(registry, f"id-{number}", make_dataset("".join(["pat", "ients"]), tags=("".join(["#de", "mo"]),)))
    (first,), (second,) = (entry.datasets for entry in registry.nodes())
    assert first == second == make_dataset("patients")
    assert first.tags[0] is second.tags[0] and first.columns[0].name is second.columns[0].name
