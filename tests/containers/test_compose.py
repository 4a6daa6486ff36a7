"""compose.yaml as its users run it, with podman-compose: up, train, kill, down, up again; then the enrolled profile.

Runs with `--containers`, where an engine and the images are. Health timers do not run everywhere, so health is asked for.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from container_stack import OWNERS, ROOT, Stack, missing, podman, stack

import grid
from grid.demo import node_total
from grid.demo_data import split
from grid.demo_learning import accuracy, fresh_model, pooled_total, train

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1500)]

STEPS = 5
MOST_MB = 1250
"""The image above its base."""


@pytest.fixture(autouse=True, scope="module")
def engine() -> None:
    """Asked when a test is about to run, and not where these tests are merely collected."""
    if missing():
        pytest.skip(missing())


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Stack]:
    with stack(tmp_path) as made:
        yield made


def learn(client: grid.Client) -> float:
    """Some steps of the demonstration's training, from this machine: the share of test rows that the model gets right."""
    rows, test = client.search("#breast-cancer", "#train"), client.search("#breast-cancer", "#test")
    assert sorted(one.node.name for one in rows) == sorted(one.node.name for one in test) == list(OWNERS)
    total = node_total(rows)
    *_, last = train(total, fresh_model(total), sum(one.rows for one in rows), STEPS)
    assert last.loss < 0.5
    return accuracy(node_total(test), last.model, sum(one.rows for one in test))


def rows_of(client: grid.Client, owner: str) -> Any:
    """An owner's training set."""
    (found,) = (one for one in client.search("#breast-cancer", "#train") if one.node.name == owner)
    return found


def learn_pooled() -> float:
    """The same with all rows in one place."""
    data = split()
    rows, test = data.pooled("train"), data.pooled("test")
    total = pooled_total(rows.features, rows.targets)
    *_, last = train(total, fresh_model(total), len(rows.targets), STEPS)
    return accuracy(pooled_total(test.features, test.targets), last.model, len(test.targets))


def test_the_image_is_small_and_holds_no_more_than_it_needs() -> None:
    (image,) = json.loads(podman("image", "inspect", "localhost/grid"))
    (base,) = json.loads(podman("image", "inspect", "python:3.11-slim"))
    assert image["Config"]["User"] == "grid"
    assert image["Config"]["Entrypoint"] == ["grid"]
    assert image["Config"]["StopSignal"] in ("SIGTERM", "15")
    assert image["Labels"]["org.opencontainers.image.title"] == "grid"
    assert (image["Size"] - base["Size"]) / 1e6 < MOST_MB
    said = (
        "import importlib.util as u, os, pathlib as p\n"
        "assert os.getuid() == 10001\n"
        "assert not any(u.find_spec(name) for name in ('pytest', 'sklearn', 'pip', 'triton', 'hypothesis', 'playwright'))\n"
        "import torch, pyarrow.parquet, pandas, grid\n"
        "assert torch.version.cuda is None and not grid.__file__.startswith('/src')\n"
        "site = p.Path(torch.__file__).parents[1]\n"
        "left = [f for f in site.rglob('*') if f.suffix in ('.a', '.pyx') or f.name in ('tests', 'test')]\n"
        "assert not left, left\n"
        "tops = ('/opt/grid', '/state', '/data', '/demo', '/tmp', '/run/secrets')\n"
        "found = [f for top in tops for f in p.Path(top).rglob('*')]\n"
        "assert not [f for f in found if f.suffix in ('.key', '.pem', '.token', '.csv', '.sqlite')], found\n"
    )
    options = ["--rm", "--read-only", "--cap-drop", "ALL", "--network", "none", "--entrypoint", "python"]
    podman("run", *options, "localhost/grid", "-c", said)


def test_a_dev_grid_trains_survives_a_kill_and_keeps_its_state(running: Stack) -> None:
    running.up(*OWNERS)
    running.wait_healthy("gateway", *OWNERS)
    for service in ("gateway", *OWNERS):
        config = running.state(service)
        assert config["Host"]["ReadonlyRootfs"] and config["Host"]["RestartPolicy"]["Name"] == "unless-stopped"
        assert config["Host"]["CapDrop"] and not config["Host"]["CapAdd"] and not config["Host"]["Privileged"]
        assert any("no-new-privileges" in option for option in config["Host"]["SecurityOpt"])

    url = f"ws://127.0.0.1:{running.port}"
    with grid.connect(url) as client:
        assert abs(learn(client) - learn_pooled()) <= 0.01
        with pytest.raises(grid.ReleaseDenied):
            rows_of(client, "alice").features.get()
        assert rows_of(client, "alice").features[:50].sum(0).get().shape == (30,)

    pid = running.state("bob")["Pid"]
    running.kill("bob")
    running.wait_restarted("bob", pid)
    running.wait_healthy("bob")
    with grid.connect(url) as client:
        assert client.nodes["bob"].state == "online"
        learn(client)

    identities = {name: running.identity(f"{name}-state") for name in ("gateway", *OWNERS)}
    ledgers = {name: running.ledger(f"{name}-state") for name in OWNERS}
    assert all(len(ledger) == 2 for ledger in ledgers.values())
    running.down()
    assert {name: running.ledger(f"{name}-state") for name in OWNERS} == ledgers

    running.up(*OWNERS)
    running.wait_healthy("gateway", *OWNERS)
    assert {name: running.identity(f"{name}-state") for name in ("gateway", *OWNERS)} == identities
    assert {name: running.ledger(f"{name}-state") for name in OWNERS} == ledgers
    with grid.connect(url) as client:
        assert {name: client.nodes[name].id for name in OWNERS} == {name: identities[name] for name in OWNERS}
        features, _ = next(iter(rows_of(client, "alice").batches(32)))
        with pytest.raises(grid.ReleaseDenied):  # it has released rows chosen by position, and still knows that
            features.sum(0).get()
        learn(client)
    for service in OWNERS:
        lines = [json.loads(line) for line in running.logs(service).splitlines()]
        assert any(line.get("event") == "ready" for line in lines)
    looked = json.loads(podman("exec", running.container("alice"), "grid", "doctor", "node", "alice", "--json", check=False))
    # The engine gives a container a name server from outside, too; when that one answers first, no service has an address.
    assert {one["check"] for one in looked if one["verdict"] == "wrong"} <= {"gateway"}, looked


def test_an_enrolled_grid_runs_on_secret_files_alone(running: Stack, tmp_path: Path) -> None:
    key = str(tmp_path / "root.key")
    command = [sys.executable, "-m", "grid"]
    subprocess.run([*command, "root", "init", "--root", key], check=True, capture_output=True, timeout=60)
    subprocess.run(
        [ROOT / "deploy" / "compose-secrets.sh", key, running.secrets],
        check=True, capture_output=True, timeout=120, cwd=ROOT, env=running.environment | {"GRID": " ".join(command)},
    )  # fmt: skip
    running.up(*(f"enrolled-{owner}" for owner in OWNERS))
    running.wait_healthy("enrolled-gateway", *(f"enrolled-{owner}" for owner in OWNERS))

    url, ca = f"wss://localhost:{running.tls_port}", running.secrets / "ca.crt"
    token = (running.secrets / "ann.token").read_text()
    with grid.connect(url, token=token, ca=ca, home=tmp_path / "ann") as client:
        assert learn(client) > 0.9
    with grid.connect(url, ca=ca, home=tmp_path / "ann") as client:  # her keys are kept
        assert set(client.nodes) == set(OWNERS)

    with pytest.raises(grid.AuthenticationFailed, match="token"):
        grid.connect(url, ca=ca, home=tmp_path / "nobody")
    with pytest.raises(grid.AuthenticationFailed, match="certificate"):
        grid.connect(url, token=token, home=tmp_path / "ann")
    other = str(tmp_path / "other.key")
    subprocess.run([*command, "root", "init", "--root", other], check=True, capture_output=True, timeout=60)
    enrol = [*command, "enroll", "eve", "--role", "client", "--root", other]
    eve = subprocess.run(enrol, check=True, capture_output=True, text=True, timeout=60).stdout.strip()
    with pytest.raises(grid.AuthenticationFailed):
        grid.connect(url, token=eve, ca=ca, home=tmp_path / "eve")

    secret = [path.read_text().strip() for path in running.secrets.iterdir() if path.suffix in (".token", ".key")]
    for service in ("enrolled-gateway", *(f"enrolled-{owner}" for owner in OWNERS)):
        told = json.dumps(running.state(service)) + running.logs(service)
        assert not any(text in told for text in secret)
    assert os.stat(running.secrets).st_mode & 0o777 == 0o700
