"""What the examples share: it starts the nodes that an example is about, each with its owner's folder, in this process or in
processes of their own, and ends them all.

    python examples/millionaires.py              # everything in this process: quick
    python examples/millionaires.py --processes  # a gateway and nodes as `grid gateway` and `grid node` start them
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import inspect
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch

import grid
from grid.demo_processes import processes
from grid.node.results import listed
from grid.settings import NodeSettings
from grid.testing import LocalGrid

DATA = Path(__file__).parents[2] / "shared" / "data"
"""Public tables and images that are not part of the project; examples do without where they are absent."""


@dataclasses.dataclass(frozen=True)
class Started:
    """The grid that runs. `client()` connects another client; `states` has each node's folder for keys and results."""

    client: Callable[[], Any]
    states: Mapping[str, Path]

    def results(self, node: str, dataset: str) -> list[torch.Tensor]:
        """What opened at a node alone, of this dataset: the files that `grid results --state DIR` lists to its owner."""
        found = [one.file for one in listed(self.states[node]) if dataset in one.datasets]
        return [torch.from_numpy(numpy.load(file, allow_pickle=False)) for file in found]


@contextlib.contextmanager
def started(nodes: Mapping[str, Mapping[str, Mapping[str, Any]]], *, in_processes: bool = False) -> Iterator[Started]:
    """Nodes by name, each with datasets by name: {"features": tensor, "policy": {...}}, and "targets" where there are some."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="grid-example-")))
        data = {node: write(folder / node, datasets) for node, datasets in nodes.items() if datasets}
        if not in_processes:
            state = folder / "state"
            local = stack.enter_context(LocalGrid({node: data.get(node, {}) for node in nodes}, node=NodeSettings(state=state)))
            yield Started(local.client, dict.fromkeys(nodes, state))
            return
        states = {node: folder / f"{node}-state" for node in nodes}
        running = stack.enter_context(processes(folder))
        running.start("gateway", ["gateway", "--dev", "--listen", "127.0.0.1:0"])
        url = running.ready("gateway")["url"]
        for node in nodes:
            own = ["--state", str(states[node]), *(["--data", str(data[node])] if node in data else [])]
            running.start(node, ["node", node, "--gateway", url, "--dev", "--listen", "127.0.0.1:0", *own])
        for node in nodes:
            running.ready(node)
        clients = stack.enter_context(contextlib.ExitStack())
        yield Started(lambda: clients.enter_context(grid.connect(url)), states)


def write(folder: Path, datasets: Mapping[str, Mapping[str, Any]]) -> Path:
    """A folder as `grid node --data` takes it: for each dataset a data file, and a description with the policy."""
    folder.mkdir(parents=True)
    for name, given in datasets.items():
        arrays = {part: given[part].numpy() for part in ("features", "targets") if part in given}
        numpy.savez(folder / f"{name}.npz", **arrays)
        policy = [f"{key} = {json.dumps(value)}" for key, value in given["policy"].items()]
        told = [f'file = "{name}.npz"', f'tags = ["#{name}"]', "[policy]", *policy, ""]
        (folder / f"{name}.toml").write_text("\n".join(told), encoding="utf-8")
    return folder


def refusals(asked: Mapping[str, Callable[[], object]]) -> dict[str, str]:
    """Ask for what must not be had: the rules that refused it. An example that gets something of this is wrong, and fails."""
    rules = {}
    for what, ask in asked.items():
        try:
            ask()
        except grid.ReleaseDenied as error:
            rules[what] = str(error.details["rule"])
            print(f"refused: {what} ({rules[what]})")
        else:
            raise AssertionError(f"{what} was to be refused, and was not")
    return rules


def main(run: Callable[..., object], arguments: Sequence[str] | None = None) -> None:
    """Run an example from a terminal."""
    parser = argparse.ArgumentParser(description=run.__doc__)
    parser.add_argument("--processes", action="store_true", help="start a gateway and nodes as processes of their own")
    taken = inspect.signature(run).parameters
    if "plot" in taken:
        parser.add_argument("--plot", type=Path, default=taken["plot"].default, metavar="FILE", help="where the picture goes")
    given = vars(parser.parse_args(arguments))
    run(in_processes=given.pop("processes"), **given)
