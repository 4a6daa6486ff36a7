"""A release by hand, over real processes: the client waits, the owner reads and signs at the node, the value leaves once."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

import grid
from grid.cli import grid as command
from grid.demo_processes import processes

pytestmark = pytest.mark.process

DESCRIPTION = 'file = "patients.csv"\ntags = ["#approve"]\n[policy]\nrelease = "approve"\n'


@grid.plan
def oldest(x: torch.Tensor) -> torch.Tensor:
    return x.max(0).values


@grid.plan
def above(x: torch.Tensor, limit: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return ((x[:, 0] > limit) * (x @ w).sum(1)).sum(0)


def owner(*arguments: str, state: Path) -> Result:
    """What the owner types at the node's machine."""
    return CliRunner().invoke(command, [*arguments, "--state", str(state)])


def test_a_value_leaves_once_after_the_owners_word(tmp_path: Path) -> None:
    data, state = tmp_path / "data", tmp_path / "state"
    data.mkdir()
    (data / "patients.toml").write_text(DESCRIPTION)
    (data / "patients.csv").write_text("age,pressure\n" + "\n".join(f"{20 + row},{100 + row}" for row in range(40)) + "\n")
    assert "no node has kept its keys" in owner("requests", state=tmp_path).output
    with processes(tmp_path) as running:
        running.start("gateway", ["gateway", "--dev", "--listen", "127.0.0.1:0"])
        url = running.ready("gateway")["url"]
        running.start("alice", ["node", "alice", "--gateway", url, "--data", str(data), "--state", str(state), "--dev"])
        running.ready("alice")
        with grid.connect(url) as g:
            (ds,) = g.search("#approve")
            value = oldest(ds.features)
            with pytest.raises(grid.ReleaseDenied, match="waiting for approval, request") as caught:
                value.get()
            request = str(caught.value.details["request"])
            assert request in str(caught.value)

            (listed,) = json.loads(owner("requests", "--json", state=state).stdout)
            assert [listed[name] for name in ("id", "dataset", "value", "state")] == [request, "patients", "f4[2]", "waiting"]
            assert request in owner("requests", state=state).stdout
            page = owner("requests", request, state=state).stdout
            assert "def oldest(" in page and "max(x, dim=0)" in page and value_plan(ds) in page
            assert 'release = "aggregate" would refuse it' in page and "waiting" in page
            hidden = page.replace(value_plan(ds), "")
            for name in ("id", "client", "client_name"):
                hidden = hidden.replace(listed[name], "")
            assert "59" not in re.sub(r"asked .*|call \w+", "", hidden)

            who = f"{listed['client_name']} ({listed['client']})"
            assert listed["client_name"] and who in page
            assert f"approved: f4[2] of patients, for {who}" in owner("approve", request, state=state).stdout
            assert owner("approve", request, state=state).exit_code == 2
            assert value.get().tolist() == [59.0, 139.0]
            assert owner("deny", request, state=state).exit_code == 2, "it has left"
            with pytest.raises(grid.ReleaseDenied, match="waiting for approval") as again:
                value.get()
            other = str(again.value.details["request"])
            assert other != request

            assert owner("approve", other, state=state).exit_code == 0
            assert owner("deny", other, state=state).exit_code == 0, "an approval can be withdrawn"
            with pytest.raises(grid.ReleaseDenied, match="its owner denied this release"):
                oldest(ds.features).get()
            wide = torch.linspace(-1, 1, 40).reshape(2, 20)
            with pytest.raises(grid.ReleaseDenied, match="waiting") as caught:
                above(ds.features, torch.tensor(57.5), wide).get()
            asked = str(caught.value.details["request"])
            page = owner("requests", asked, state=state).stdout
            assert "x: features of the dataset 'patients'" in page and "limit: the client's own f4[] = 57.5" in page
            digest = hashlib.sha256(wide.numpy().tobytes()).hexdigest()
            assert f"w: the client's own f4[2, 20], from -1.0 to 1.0, sha256='{digest}'" in page
            assert "single out people" in page
            assert owner("deny", asked, state=state).exit_code == 0
            for refused in (ds.features, ds.features.mean(0), ds.features.sum()):
                with pytest.raises(grid.ReleaseDenied, match="no direct result of a plan call"):
                    refused.get()
        assert owner("requests", state=state).stdout == "No release waits for your word.\n"
        assert len(json.loads(owner("requests", "--all", "--json", state=state).stdout)) == 3


def value_plan(ds: object) -> str:
    return oldest.trace_for(ds.features).id  # type: ignore[attr-defined]
