"""The data of a chaos run's nodes, which its clients know, too."""

from __future__ import annotations

from pathlib import Path

import torch

NODES = ("alice", "bob", "carol")
COLUMNS = 3
ROWS = 60


def rows_of(node: str) -> torch.Tensor:
    """The features of a node's dataset, (ROWS, COLUMNS) float32: whole numbers, so that CSV keeps them."""
    generator = torch.Generator().manual_seed(NODES.index(node))
    return torch.randint(-20, 20, (ROWS, COLUMNS), generator=generator).float()


def write(folder: Path, node: str) -> Path:
    """The node's data folder: its rows as `numbers`, and as `lines`, where the last column is what the others are to give."""
    folder.mkdir(parents=True)
    lines = [",".join("abc"), *(",".join(str(int(value)) for value in row) for row in rows_of(node))]
    (folder / "numbers.csv").write_text("\n".join(lines) + "\n")
    policy = '[policy]\nrelease = "aggregate"\nplans = "any"\nmin_rows = 10\nmax_elements = 100000000\n'
    (folder / "numbers.toml").write_text(f'file = "numbers.csv"\ntags = ["#chaos", "#{node}"]\n{policy}')
    (folder / "lines.toml").write_text(f'file = "numbers.csv"\ntarget = "c"\ntags = ["#lines"]\n{policy}')
    return folder
