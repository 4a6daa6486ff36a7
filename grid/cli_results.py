"""`grid results`: what committees have opened to this node, for its owner. Works on the state folder, and needs no network."""

from __future__ import annotations

import time
from pathlib import Path

import click

from grid.cli_approve import STATE_OPTION
from grid.cli_support import JSON_OPTION, show_table
from grid.display import printable
from grid.errors import InvalidRequest


@click.command("results")
@STATE_OPTION
@JSON_OPTION
def results(state: Path, as_json: bool) -> None:
    """List the results on shares of this owner's rows that opened to this node alone, the oldest first.

    Each is a file for numpy.load, to be used and deleted as you like: nothing else reads it.
    """
    from grid.node.results import as_json as in_json
    from grid.node.results import listed

    if not state.is_dir():
        raise InvalidRequest(f"{state}: there is no such folder; say --state DIR as the node was started with")
    found = listed(state)
    if as_json:
        click.echo(in_json(found))
        return
    rows = [
        (
            time.strftime("%Y-%m-%d %H:%M", time.localtime(one.at)),
            ", ".join(one.datasets),
            printable(one.client_name, 40),
            one.plan[:12],
            f"{one.dtype}{list(one.shape)}",
            one.file.name,
        )
        for one in found
    ]
    columns = ("when", "datasets", "client", "plan", "value", "file")
    show_table("Results", columns, rows, "No result has opened to this node.")
    if found:
        click.echo(f"The files are in {found[0].file.parent}")


COMMANDS: tuple[click.Command, ...] = (results,)
