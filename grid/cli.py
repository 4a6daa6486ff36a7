"""The command line: `grid gateway | node | ...`; the groups of commands are in the modules `cli_*`.

Each command's work is imported when it runs, so that `--help` is quick. Results go to stdout, progress and errors to
stderr; with `--json` each line of stdout is one JSON object or list. What the exit codes mean stands in `EXIT_CODES`.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from grid import cli_approve, cli_data, cli_doctor, cli_health, cli_jobs, cli_look, cli_results, cli_root, cli_serve, logs
from grid.cli_support import EXIT_CODES, JSON_OPTION, GridGroup, say

EPILOG = "\b\nExit codes:\n" + "\n".join(f"  {code:>3}  {text}" for code, text in EXIT_CODES.items())


@click.group(cls=GridGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}, epilog=EPILOG)
@click.version_option(package_name="grid", prog_name="grid")
@click.option("--with-parent", is_flag=True, hidden=True, help="stop when standard input closes")
@click.option("-v", "--verbose", count=True, help="say more on stderr; twice for debugging")
def grid(verbose: int, with_parent: bool) -> None:
    """Learn from data that stays where it is.

    Data owners run a NODE each, next to their data; a GATEWAY lets nodes and data scientists find each other and relays
    what they say, without being able to read it. To see all of it work on this machine, with real data:

        grid demo

    To run your own: `grid gateway --dev` in one terminal, `grid node alice --data DIR --dev` in another, then
    `grid ls` and `grid datasets`; in Python, `grid.connect("ws://127.0.0.1:8080")`.
    """
    logs.configure(("warning", "info", "debug")[min(verbose, 2)])


@grid.command()
@JSON_OPTION
@click.option("--rounds", default=20, show_default=True, type=click.IntRange(1, 200), help="rounds of federated training")
@click.option("--keep", type=click.Path(path_type=Path, file_okay=False), help="keep the nodes' data and logs in this folder")
@click.option(
    "--write-data",
    type=click.Path(path_type=Path, file_okay=False),
    help="only write the owners' data as folders alice, bob, carol in this one, and start nothing; what is there already stays",
)
@click.pass_context
def demo(context: click.Context, as_json: bool, rounds: int, keep: Path | None, write_data: Path | None) -> None:
    """Three data owners, one model, nothing in plaintext: all on this machine.

    Writes the breast-cancer data of scikit-learn as three owners' CSV folders, starts a gateway and three nodes, and
    trains a logistic regression on them. No row and no single node's update leaves its node: only sums over all three.
    """
    if write_data is not None:
        from grid.demo_data import fill_folders

        written = fill_folders(write_data)
        said = "\n".join(written) or "nothing was written: the folders hold data already"
        say({"event": "data", "written": written}, said, as_json=as_json)
        return
    started = time.monotonic()  # what follows loads torch, which takes its time, too
    from grid.demo import run

    if not run(as_json=as_json, rounds=rounds, started=started, folder=keep).sound:
        context.exit(5)


for command in (
    *cli_serve.COMMANDS,
    *cli_approve.COMMANDS,
    *cli_results.COMMANDS,
    *cli_data.COMMANDS,
    *cli_look.COMMANDS,
    *cli_jobs.COMMANDS,
    *cli_health.COMMANDS,
    *cli_doctor.COMMANDS,
    *cli_root.COMMANDS,
):
    grid.add_command(command)


def main(arguments: list[str] | None = None, **extra: Any) -> None:
    """Entry point of the command `grid`."""
    grid.main(args=arguments, prog_name="grid", **extra)
