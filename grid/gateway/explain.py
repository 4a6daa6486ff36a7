"""A dataset's policy and schema in plain words, for people who do not know the names of the rules."""

from __future__ import annotations

from typing import NamedTuple

from grid.wire.messages import ColumnCard, DatasetCard, PolicyCard

SHOWN_CATEGORIES = 12


class Explained(NamedTuple):
    """What one policy means: in a word, in a sentence, and what may and may not leave the node."""

    word: str
    sentence: str
    may: tuple[str, ...]
    may_not: tuple[str, ...]


WORDS = {"deny": "nothing", "aggregate": "aggregates", "approve": "on approval", "open": "everything"}
"""What leaves, in a word, by `release`."""


def explain(card: DatasetCard) -> Explained:
    """What a dataset's policy lets leave its node. The node decides; this says what its owner wrote."""
    policy = card.policy
    if policy.release == "aggregate":
        return _aggregate(policy)
    if policy.release == "open":
        sentence = "The owner has made this data public: everything may leave the node, single rows too."
        return Explained(WORDS["open"], sentence, ("Rows, columns and every result computed from them",), ())
    described = "The description on this page: schema, bounds, categories, number of rows"
    if policy.release == "approve":
        sentence = "The owner decides on each result by hand: it waits until they have read the plan that made it, and said yes."
        approved = "Results of plans that the owner has approved, each once, to the client that asked"
        may = (described, approved, *_on_shares(policy))
        return Explained(WORDS["approve"], sentence, may, ("Whatever the owner has not approved", *_stays(policy)))
    if policy.parties:
        sentence = "Nothing leaves the node in the clear. Of secret shares of it, results of plans that the owner lists may open."
        return Explained(WORDS["deny"], sentence, (described, *_on_shares(policy)), ("Rows", "Results of any other plan"))
    sentence = "Nothing that was computed from this data leaves the node."
    return Explained(WORDS["deny"], sentence, (described,), ("Rows", "Results of any kind", *_stays(policy)))


def _aggregate(policy: PolicyCard) -> Explained:
    rows = "1 row" if policy.min_rows == 1 else f"{policy.min_rows:,} rows".replace(",", "\u202f")
    sentence = f"Results over many rows may leave, such as sums, means and gradients: at least {rows} behind every number."
    numbers = f"{policy.max_elements:,}".replace(",", "\u202f")
    may = [f"Aggregates over at least {rows}; at most {numbers} numbers over the dataset's life where the node counts them"]
    if policy.plans == "any":
        may.append("Results of any plan and of commands, as long as the node can show them to be aggregates")
    else:
        plans = len(policy.allow)
        listed = "1 plan" if plans == 1 else f"{plans} plans"
        may.append(f"Results of built-in statistics{f', and of {listed} that the owner has read and listed' if plans else ''}")
    if policy.share:
        may.append(f"Its part in a secure sum over {policy.min_cohort} nodes or more, of which only the total is seen")
    if policy.updates == "single":
        may.append("What federated jobs learn of it, by itself, to this gateway")
    if policy.same_organisation:
        may.append("What federated jobs learn of it, in sums that two nodes of one organisation take part in")
    if policy.batches == "known":
        may.append("Which rows made a batch, to clients who give their job a seed")
    if policy.sinks:
        may.append(f"Values with rows, sealed, to these nodes: {', '.join(policy.sinks[:SHOWN_CATEGORIES])}")
    may += _on_shares(policy)
    may_not = ["Single rows, or a value that follows rows one by one"]
    if policy.min_rows > 1:
        may_not.append(f"Anything behind which fewer than {rows} can be told apart, together with all that has left before")
    may_not.append("Maximum, median, sorted values: they show one row's value")
    if policy.plans != "any":
        may_not.append("Results of other plans and of single commands")
    return Explained(WORDS["aggregate"], sentence, tuple(may), (*may_not, *_stays(policy)))


def _on_shares(policy: PolicyCard) -> tuple[str, ...]:
    """Who may hold shares of rows in a committee."""
    if not policy.parties:
        return ()
    named = f"these nodes: {', '.join(policy.parties[:SHOWN_CATEGORIES])}"
    who = "whichever nodes a client names" if "*" in policy.parties else named
    return (f"Rows as secret shares, unreadable to each single node, to {who}",)


def _stays(policy: PolicyCard) -> tuple[str, ...]:
    """What else stays, that some policies allow."""
    stays = []
    if not policy.share:
        stays.append("Shares of it in a secure sum")
    if not policy.sinks:
        stays.append("Values with rows, to any other node")
    return tuple(stays)


def show_range(column: ColumnCard) -> str:
    """The values that a column may have, as its owner says."""
    if column.kind == "category":
        number = len(column.categories)
        return "1 value" if number == 1 else f"{number} values"
    if column.minimum is not None and column.maximum is not None:
        return f"{column.minimum:g} to {column.maximum:g}"
    return ""


MISSING = {"error": "not allowed", "category": "a category of their own", "mean-of-bounds": "the middle of the range"}
"""What becomes of empty cells."""


def show_shape(card: DatasetCard) -> str:
    """Features and targets as tensors: `features (768, 10) f4`."""
    parts = [f"features {_shape(card.rows, card.feature_shape)} {card.feature_dtype}"]
    if card.target_dtype:
        parts.append(f"targets {_shape(card.rows, card.target_shape)} {card.target_dtype}")
    if card.classes:
        parts.append(f"{card.classes} classes")
    return ", ".join(parts)


def _shape(rows: int, rest: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, (rows, *rest)))}{',' if not rest else ''})"


def snippet(card: DatasetCard, node: str, address: str, *, dev: bool, listed: bool = True) -> str:
    """A few lines of Python that connect and open the dataset. Names are literals of Python, whatever is in them.

    Where it is not `listed` with its node, as the grid is large, the lines search for it.
    """
    token = "" if dev else ', token="TOKEN"'
    found = f"g.nodes[{node!a}].datasets[{card.name!a}]"
    if not listed:
        found = f"next(ds for ds in g.search(text={node!a}) if (ds.node.name, ds.name) == ({node!a}, {card.name!a}))"
    lines = [
        "import grid",
        "",
        f"g = grid.connect({address!a}{token})",
        f"ds = {found}",
        "",
        "print(ds.mock.head())          # made-up rows of the same schema",
    ]
    if card.policy.release == "open" or (card.policy.release, card.policy.plans) == ("aggregate", "any"):
        lines.append("mean = ds.features.mean(0)     # computed at the node")
        lines.append("print(mean.get())              # leaves if the policy allows")
    return "\n".join(lines)
