"""What a whole grid logs at its most talkative: who asked whom for what, and never a value, key, token or share."""

from __future__ import annotations

import io
import json
import logging
import os
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch

import grid
from grid.demo_processes import Processes
from grid.demo_processes import processes as started_processes
from grid.logs import JsonFormatter, TextFormatter
from grid.node import workspace
from grid.smpc import ring
from grid.testing import LocalGrid

PLANTED = 7361.5298
"""A row's value; float32 and float64 of it, and its digits, are looked for."""

CONSTANT = 9182.7364
INDEX = 836_417
NAME = "Wojciechowska"
OWNERS = ("alice", "bob", "carol")


def shapes_of(number: float) -> list[bytes]:
    """How a number could be written: its digits, and its bytes as hex or escaped, in both sizes."""
    digits = [repr(number), f"{number:.4f}", f"{number:.2f}", f"{number:e}"[:6]]
    raw = [struct.pack("<f", number), struct.pack("<d", number)]
    return [text.encode() for text in digits] + [form for data in raw for form in shapes_of_bytes(data)]


def shapes_of_bytes(data: bytes) -> list[bytes]:
    return [data.hex().encode(), data.hex(" ").encode(), repr(data)[2:-1].encode()]


def frame(rows: int = 30) -> pandas.DataFrame:
    """Rows of numbers, the planted one among them."""
    x = torch.arange(float(rows)).tolist()
    x[7] = PLANTED
    return pandas.DataFrame(
        {"x": x, "index": [INDEX if row == 3 else row for row in range(rows)], "y": [row % 2 for row in range(rows)]}
    )


@grid.plan
def with_constant(x: torch.Tensor) -> torch.Tensor:
    return (x * 9182.7364).sum(0)


@grid.plan
def that_fails(x: torch.Tensor) -> torch.Tensor:
    return x[:, 0].index_select(0, x[:, 1].long()).sum() * 9182.7364


def work(client: Any, datasets: Iterable[Any]) -> None:
    """A job with everything in it: values sent and fetched, plans, a sum, refusals, failures on private rows."""
    parts = [one.features for one in datasets]
    node = client.nodes["alice"]
    sent = node.send(torch.full((40, 2), PLANTED))
    assert sent.get()[0, 0] == torch.tensor(PLANTED)
    assert with_constant(parts[0]).get().ndim == 1
    assert grid.sum([with_constant(part) for part in parts]).ndim == 1
    for attempt in (
        lambda: parts[0].get(),
        lambda: that_fails(parts[0]).get(),
        lambda: sent.index_select(0, node.send(torch.tensor([INDEX]))).get(),
    ):
        with pytest.raises(grid.GridError):
            attempt()


class Everything(logging.Handler):
    """Each line in both forms."""

    def __init__(self) -> None:
        super().__init__()
        self.text = io.StringIO()
        self.objects: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.text.write(TextFormatter().format(record) + "\n")
        self.objects.append(json.loads(JsonFormatter().format(record)))


@pytest.fixture
def everything() -> Iterator[Everything]:
    handler, package = Everything(), logging.getLogger("grid")
    before = package.level
    package.addHandler(handler)
    package.setLevel(logging.DEBUG)
    yield handler
    package.removeHandler(handler)
    package.setLevel(before)


def test_no_share_row_or_constant_is_logged_by_a_local_grid(everything: Everything, monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[bytes] = []
    split = ring.split

    def remembered(*given: Any) -> list[ring.Elements]:
        made = split(*given)
        shares.extend(part.tobytes() if hasattr(part, "tobytes") else ring.to_tensor(part).numpy().tobytes() for part in made)
        return made

    def broken(*given: Any) -> None:
        raise RuntimeError(f"a fault of ours that quotes {NAME} and {PLANTED}")

    monkeypatch.setattr(ring, "split", remembered)
    data = {
        owner: {"numbers": {"features": torch.tensor(frame()[["x", "index"]].values, dtype=torch.float32)}} for owner in OWNERS
    }
    with LocalGrid(nodes=data) as local:
        client = local.client()
        work(client, [client.nodes[owner].datasets["numbers"] for owner in OWNERS])
        monkeypatch.setattr(workspace.Workspace, "_resolve", broken)
        with pytest.raises(grid.GridError, match="its log says what"):
            (client.nodes["alice"].send(torch.ones(2)) + 1).get()
    text = everything.text.getvalue().encode()
    assert len(shares) == 9
    for share in shares:
        for at in range(0, len(share), 8):
            element = share[at : at + 8]
            number = struct.unpack("<q", element)[0]
            assert not any(
                form in text for form in [*shapes_of_bytes(element), str(number).encode(), str(number % 2**64).encode()]
            )
    for number in (PLANTED, CONSTANT):
        assert not any(form in text for form in shapes_of(number)), number
    assert str(INDEX).encode() not in text and NAME.encode() not in text
    assert b"RuntimeError" in text and b"withheld" in text


def test_a_request_can_be_followed_from_the_client_to_the_node(everything: Everything) -> None:
    with LocalGrid(nodes=1) as local:
        local.client("ann").nodes["alice"].send(torch.ones(3)).get()
    asked = [line for line in everything.objects if line["message"] == "asks for 'get-object'"]
    heard = [line for line in everything.objects if line["message"] == "is asked for 'get-object'"]
    assert len(asked) == len(heard) == 1
    assert (asked[0]["peer"], heard[0]["peer"]) == ("alice", "ann")
    assert asked[0]["request"] == heard[0]["request"] and asked[0]["session"] == heard[0]["session"]
    assert heard[0]["peer_id"] and heard[0]["link"]
    (opened,) = (line for line in everything.objects if str(line["message"]).startswith("link "))
    assert opened["peer"] == "ann" and opened["connection"] and opened["request"] and "node alice" in opened["message"]
    joins = [line for line in everything.objects if line["message"] == "asks for 'join'"]
    joined = [line for line in everything.objects if line["message"] == "is asked for 'join'"]
    assert {line["session"] for line in joins} == {line["session"] for line in joined}
    begun = [line for line in everything.objects if line["message"] == "a client's session begins"]
    assert begun[0]["session"] == heard[0]["session"]


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    with started_processes(tmp_path) as running:
        yield running


def command(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "grid", *arguments, "--json"], capture_output=True, text=True, check=True, timeout=60
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def write_data(folder: Path) -> Path:
    folder.mkdir()
    frame().assign(who=[NAME if row == 5 else "Smith" for row in range(30)]).to_csv(folder / "numbers.csv", index=False)
    policy = 'release = "aggregate"\nplans = "any"\nmin_rows = 10\nmax_elements = 1000\n'
    columns = f'[columns.who]\ncategories = ["Smith", "{NAME}"]\n'
    (folder / "numbers.toml").write_text(f'file = "numbers.csv"\ntarget = "who"\n[policy]\n{policy}{columns}')
    return folder


@pytest.mark.process
def test_processes_at_debug_log_json_and_no_contents(
    processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything secret that a real, rooted grid has: looked for in all that its processes printed."""
    for name, value in (("GRID_LOG_LEVEL", "debug"), ("GRID_LOG_FORMAT", "json"), ("GRID_TOKEN", "dashboard-" + "d" * 30)):
        monkeypatch.setenv(name, value)
    key = str(tmp_path / "root.key")
    root = command("root", "init", "--root", key)["root"]
    processes.start("gateway", ["gateway", "--root", root, "--state", str(tmp_path / "gateway"), "--listen", "127.0.0.1:0"])
    url = processes.ready("gateway")["url"]
    tokens = {owner: command("enroll", owner, "--role", "node", "--root", key, "--gateway", url)["token"] for owner in OWNERS}
    for owner, token in tokens.items():
        (tmp_path / f"{owner}.token").write_text(token)
        data = write_data(tmp_path / f"{owner}-data")
        node = ["node", owner, "--data", str(data), "--state", str(tmp_path / owner), "--join", str(tmp_path / f"{owner}.token")]
        processes.start(owner, node)
    for owner in OWNERS:
        processes.ready(owner)
    tokens["ann"] = command("enroll", "ann", "--role", "client", "--root", key, "--gateway", url)["token"]
    with grid.connect(url, token=tokens["ann"], home=tmp_path / "home") as client:
        work(client, [client.nodes[owner].datasets["numbers"] for owner in OWNERS])
    for name in (*OWNERS, "gateway"):
        processes[name].terminate()
        assert processes[name].wait(20) == 0

    logged = {name: (tmp_path / f"{name}.log").read_bytes() for name in (*OWNERS, "gateway")}
    for name, text in logged.items():
        assert len([json.loads(line) for line in text.splitlines()]) > 10, name
    every = b"".join(logged.values())
    kept = [json.loads(path.read_text()) for path in tmp_path.rglob("identity.json")]
    assert len(kept) == 5
    secret = [one[field] for one in kept for field in ("key", "noise_key", "enrolment_key") if one[field]]
    secret += [json.loads(Path(key).read_text())["seed"], os.environ["GRID_TOKEN"], NAME, str(INDEX), *tokens.values()]
    secret += [token[6:40] for token in tokens.values()]
    for text in secret:
        assert text.encode() not in every
    for number in (PLANTED, CONSTANT):
        assert not any(form in every for form in shapes_of(number))
    alice = [json.loads(line) for line in logged["alice"].splitlines()]
    assert any(line.get("peer") == "ann" and line.get("request") and line.get("session") for line in alice)
