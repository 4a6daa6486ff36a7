"""`grid demo`: three owners' nodes, a gateway and a client on this machine, with real data; a script that explains itself.

What the client does here is what anybody's notebook would do: it uses the public API alone. The pooled data is read only
for the comparison at the end, in the role of someone who has been given everything.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text
from torch import Tensor

from grid.client.blocking import connect
from grid.client.sums import sum as sum_over_nodes
from grid.demo_data import OWNERS, Split, split, write_folders
from grid.demo_learning import LEARNING_RATE, Classifier, Model, Total, accuracy, fresh_model, loss, moments, pooled_total, train
from grid.demo_processes import Processes, processes
from grid.demo_scoring import Scoring, score_privately
from grid.errors import ReleaseDenied
from grid.federated.local import Local
from grid.plans.optimizers import SGD

WIDTH = 110
"""Columns where the output does not go to a terminal."""

MOCK_ROWS = 3
POINT = 0.01
"""The accuracy may differ from that on pooled data by one percentage point, and a score from the same in the clear."""

SCORED = OWNERS[-1]

LOCAL_STEPS = 2
"""Steps of gradient descent, over all of its rows, that a node takes in one round."""

ALL_ROWS = 1 << 16


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What the demo found; `--json` prints it. Accuracies are shares of the test rows, times in seconds.

    `scores_off` is the largest distance of a score computed on shares from the same in the clear. `client_bytes` is what the
    client sent and received, sealed; the nodes' shares went between the nodes.
    """

    owners: int
    training_rows: int
    test_rows: int
    rounds: int
    first_loss: float
    loss: float
    accuracy: float
    pooled_accuracy: float
    refused: str
    scored_rows: int
    scores_refused: str
    scores_off: float
    training_s: float
    scoring_s: float
    total_s: float
    client_bytes: int

    @property
    def sound(self) -> bool:
        """Whether rows and scores were refused, the accuracy is within a point of that of the model trained on pooled data, and
        the scores are those that the model gives in the clear."""
        near = abs(self.accuracy - self.pooled_accuracy) <= POINT + 1e-9
        return near and bool(self.refused) and bool(self.scores_refused) and self.scores_off <= POINT


def run(*, as_json: bool, rounds: int, started: float, folder: Path | None = None) -> Summary:
    """The whole demo; prints what it does, and with `as_json` one JSON object at the end. Files stay only in `folder`.

    `started` is the monotonic time from which the total counts.
    """
    console = Console(stderr=as_json)
    if not console.is_terminal:
        console.width = WIDTH
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="grid-demo-")))
        folder.mkdir(parents=True, exist_ok=True)
        data = split()
        folders = write_folders(folder, data)
        say(console, 1, f"Three owners, each with a folder of CSV files: {', '.join(OWNERS)}.")
        running = stack.enter_context(processes(folder))
        gateway = start(running, folders)
        say(console, 2, f"A gateway and three nodes run on this machine. Dashboard: {gateway['dashboard']}")
        client = stack.enter_context(connect(gateway["url"]))
        summary = learn(client, data, console, rounds, started, folder)
    show(console, summary)
    if as_json:
        Console().print_json(json.dumps(dataclasses.asdict(summary)))
    return summary


def say(console: Console, number: int, text: str) -> None:
    """One step of the story."""
    console.print(f"[bold]{number}[/]  {text}", highlight=False, soft_wrap=True)


def add(console: Console, text: str) -> None:
    """Lines that belong to the step before."""
    console.print(Text(textwrap.indent(text, " " * 5)), soft_wrap=True)


def progress(console: Console) -> Progress:
    """A bar with the loss; on a terminal it moves, elsewhere it is printed once."""
    columns = (TextColumn("     {task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"))
    return Progress(*columns, TimeElapsedColumn(), console=console)


def show(console: Console, summary: Summary) -> None:
    """The result, beside what pooled data would have given."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in (
        ("loss", f"{summary.first_loss:.4f} -> {summary.loss:.4f}"),
        ("accuracy on the owners' test rows", f"{summary.accuracy:.1%} of {summary.test_rows}"),
        ("the same, trained on pooled rows", f"{summary.pooled_accuracy:.1%}"),
        ("scores on shares", f"{summary.scored_rows}, each within {summary.scores_off:.4f} of the same in the clear"),
        ("training", f"{summary.training_s:.1f} s for {summary.rounds} rounds; {summary.total_s:.1f} s for everything"),
        ("to and from the client", f"{summary.client_bytes / 1e6:.2f} MB, sealed"),
    ):
        table.add_row(f"     {name}", f"[bold]{value}[/]")
    say(console, 8, "The result:")
    console.print(table, highlight=False)
    if summary.sound:
        console.print("\nNo row, no share and no single node's update left its node in the clear.", highlight=False)
    else:
        console.print("\n[bold red]This is not the result that it should be.[/]", highlight=False)


def start(running: Processes, folders: dict[str, Path]) -> dict[str, Any]:
    """Start the gateway, then all nodes at once; returns the gateway's ready event."""
    running.start("gateway", ["gateway", "--dev", "--listen", "127.0.0.1:0"])
    gateway = running.ready("gateway")
    for owner, folder in folders.items():
        state = state_of(folder.parent, owner)
        arguments = ["--gateway", gateway["url"], "--data", str(folder), "--state", str(state), "--dev"]
        running.start(owner, ["node", owner, *arguments, "--listen", "127.0.0.1:0"])
    for owner in folders:
        running.ready(owner)
    return gateway


def state_of(folder: Path, owner: str) -> Path:
    """Where an owner's node keeps its keys, its ledger and what opened to the owner."""
    return folder / f"{owner}-state"


def learn(client: Any, data: Split, console: Console, rounds: int, started: float, folder: Path) -> Summary:
    """The data scientist's side, from looking around to the comparison."""
    train_sets = client.search("#breast-cancer", "#train")
    test_sets = client.search("#breast-cancer", "#test")
    look_around(train_sets, console)
    refused = ask_for_rows(train_sets[0])
    say(console, 4, f"Asking {train_sets[0].node} for its rows is refused:")
    add(console, refused)

    over_nodes = node_total(train_sets)
    fresh = fresh_model(over_nodes)
    rows = sum(one.rows for one in train_sets)
    say(console, 5, f"Means and deviations of {len(fresh.mean)} columns over {rows} rows, from one sum over the nodes.")
    say(console, 6, "Training: each node learns from its rows; only the sum of what all three learned leaves them, under masks.")
    training = time.monotonic()
    losses, model = train_with_progress(client, train_sets, fresh, rounds, console)
    training_s = time.monotonic() - training

    test_rows = sum(one.rows for one in test_sets)
    found = client.evaluate(Classifier(model), test_sets, loss=loss, metrics=["loss", "accuracy"])["accuracy"]
    scoring = score_in_secret(client, data, test_sets, model, console, folder)
    return Summary(
        owners=len(train_sets),
        training_rows=rows,
        test_rows=test_rows,
        rounds=rounds,
        first_loss=losses[0],
        loss=losses[-1],
        accuracy=found,
        pooled_accuracy=pooled_accuracy(data, LOCAL_STEPS * rounds),
        refused=refused,
        scored_rows=scoring.rows,
        scores_refused=scoring.refused,
        scores_off=scoring.off,
        training_s=round(training_s, 3),
        scoring_s=round(scoring.seconds, 3),
        total_s=round(time.monotonic() - started, 3),
        client_bytes=client.bytes_sent + client.bytes_received,
    )


def score_in_secret(
    client: Any, data: Split, test_sets: Sequence[Any], model: Model, console: Console, folder: Path
) -> Scoring:
    """The last part: the client keeps the model to itself and scores one owner's rows with it."""
    dataset = next(one for one in test_sets if one.node.name == SCORED)
    rows = f"{SCORED}'s {dataset.rows} test rows"
    say(console, 7, f"The client keeps its model to itself and scores {rows}, both on shares between the three nodes.")
    scoring = score_privately(client, OWNERS, dataset, model, data.test[SCORED].features, state_of(folder, SCORED))
    add(console, f"Asking for the scores is refused: {scoring.refused}")
    add(console, f"They opened to {SCORED} alone, whose node keeps them in its state folder, where `grid results` lists them.")
    return scoring


def train_with_progress(
    client: Any, datasets: Sequence[Any], model: Model, rounds: int, console: Console
) -> tuple[list[float], Model]:
    """The loss before each round and after the last, and the model that the job ends with."""
    local = Local(epochs=LOCAL_STEPS, batch_size=ALL_ROWS, optimizer=SGD(lr=LEARNING_RATE))
    job = client.train(Classifier(model), loss=loss, datasets=datasets, rounds=rounds, local=local, name="tumours")
    losses = []
    with progress(console) as bar:
        task = bar.add_task("training", total=rounds, loss="")
        for report in job:
            losses.append(report.metrics["loss"])
            bar.update(task, completed=report.round, loss=f"loss {report.metrics['loss']:.4f}")
    return losses, job.result().model()


def look_around(found: Sequence[Any], console: Console) -> None:
    """Print what a search gave, and some rows of the mock data."""
    say(console, 3, "The client searches for #breast-cancer #train:")
    for one in found:
        add(console, f"{one.node}: {one.name}, {one.rows} rows, {len(one.columns)} columns; {one.description}")
    add(console, "Mock data has the same columns, and values made up from what the owners declare. Some of it:")
    mock = found[0].mock
    add(console, mock.iloc[:MOCK_ROWS, [0, 1, 2, -1]].to_string(index=False))


def ask_for_rows(dataset: Any) -> str:
    """Try to fetch the rows of a dataset: the text of the refusal, "" if there was none."""
    try:
        dataset.features.get()
    except ReleaseDenied as refused:
        return refused.message
    return ""


def node_total(datasets: Sequence[Any]) -> Total:
    """The sum over nodes of a plan's results on their datasets, as `grid.sum` makes it."""

    def total(what: Any, *public: Tensor) -> Tensor:
        parts = [what(one.features) if what is moments else what(one.features, one.targets, *public) for one in datasets]
        found: Tensor = sum_over_nodes(parts)
        return found

    return total


def pooled_accuracy(data: Split, steps: int) -> float:
    """The same training on all the rows in one place, in plain torch: what the nodes' owners avoid."""
    rows, test = data.pooled("train"), data.pooled("test")
    total = pooled_total(rows.features, rows.targets)
    *_, last = train(total, fresh_model(total), len(rows.targets), steps)
    return accuracy(pooled_total(test.features, test.targets), last.model, len(test.targets))
