"""Credit scoring: a bank's private model scores an applicant's private answers, and the applicant alone hears the score.

Explained in docs/tutorial/10-credit.md.
"""

from __future__ import annotations

from typing import Any

import pandas
import torch
from sklearn.linear_model import LogisticRegression
from started import DATA, main, refusals, started

import grid

TRIO = ("bank", "applicant", "watchdog")
"""The nodes that compute: those of the two owners, and one of a consumers' association."""

GERMAN_CREDIT = DATA / "GermanCredit.csv"
UNITS = {"duration": 12, "amount": 1000, "age": 10, "installment_rate": 1, "number_credits": 1, "people_liable": 1}
"""Columns, each with its unit: numbers on shares are best around 1, so durations are in years and amounts in thousands."""


def score(answers: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
    """Answers `(n, 6)`, a model's weights and its intercept `(1, 7)` -> the chance `(n, 1)` that each credit is paid back."""
    return (answers @ model[:, :-1].T + model[:, -1:]).sigmoid()


def weights(answers: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
    """What a competitor of the bank would ask: the model itself."""
    return model + 0 * answers.sum()


EXAMPLE = (torch.zeros(1, len(UNITS)), torch.zeros(1, len(UNITS) + 1))
PLAN, CURIOUS = grid.trace(score, *EXAMPLE), grid.trace(weights, *EXAMPLE)

APPLICANT = {"release": "deny", "share": list(TRIO), "min_rows": 1}
"""The applicant allows no plan at all: what comes of its answers opens at its own node or nowhere."""

CALL = f"{PLAN.id}(applicant/answers, bank/model)"
BANK = {"release": "deny", "share": list(TRIO), "allow": [CALL], "max_elements": 1, "min_rows": 1}
"""The bank lets one score go, of this applicant, to whoever the applicant's node lets it go to."""


def table() -> tuple[torch.Tensor, torch.Tensor]:
    """What the bank knows of 1,000 earlier credits: answers `(1000, 6)`, and 1.0 for those that were paid back `(1000,)`."""
    if GERMAN_CREDIT.exists():
        frame = pandas.read_csv(GERMAN_CREDIT)
        scaled = frame[list(UNITS)].to_numpy("float32") / list(UNITS.values())
        return torch.tensor(scaled, dtype=torch.float32), torch.tensor(frame["credit_risk"].to_numpy("float32"))
    rng = torch.Generator().manual_seed(0)  # made up, where the real table is not at hand
    most, least = torch.tensor([5.0, 15, 5, 3, 3, 1]), torch.tensor([0.3, 0.3, 2, 1, 1, 1])
    answers = least + most * torch.rand(1000, len(UNITS), generator=rng)
    chance = (1.5 - 0.4 * answers[:, 0] + 0.15 * answers[:, 2] - 0.05 * answers[:, 1]).sigmoid()
    return answers, (torch.rand(1000, generator=rng) < chance).float()


def trained(answers: torch.Tensor, paid: torch.Tensor) -> torch.Tensor:
    """The bank's model `(1, 7)`, by logistic regression on its own customers, at home and in the clear."""
    found = LogisticRegression(C=1e6, max_iter=1000).fit(answers.numpy(), paid.numpy())
    return torch.tensor([[*found.coef_[0], *found.intercept_]], dtype=torch.float32)


def run(*, in_processes: bool = False) -> dict[str, Any]:
    """What is the applicant's chance?"""
    answers, paid = table()
    model, applicant = trained(answers[:-1], paid[:-1]), answers[-1:]
    nodes = {
        "bank": {"model": {"features": model, "policy": BANK}},
        "applicant": {"answers": {"features": applicant, "policy": APPLICANT}},
        "watchdog": {},
    }
    with started(nodes, in_processes=in_processes) as here:
        client = here.client()
        print("The bank lets the results of this leave:\n\n" + PLAN.code)
        (theirs,), (own,) = client.search("#model"), client.search("#answers")
        with client.committee(*TRIO) as trio:
            shared = own.features.share(trio), theirs.features.share(trio)
            scores = trio.run(PLAN, *shared)
            scores.reveal(to="applicant")
            (kept,) = here.results("applicant", "answers")
            print(f"at the applicant's node: {float(kept):.4f}; the same in the clear: {float(score(applicant, model)):.4f}")
            refused = refusals({
                "the score, to the client": lambda: scores.reveal(),
                "the score, to the bank": lambda: scores.reveal(to="bank"),
                "another score": lambda: trio.run(PLAN, *shared).reveal(to="applicant"),
                "the model, to the applicant": lambda: trio.run(CURIOUS, *shared).reveal(to="applicant"),
                "the answers, to the bank": lambda: shared[0].reveal(to="bank"),
                "the model at its node": lambda: theirs.features.get(),
            })
    return {"score": float(kept), "clear": float(score(applicant, model)), "refused": refused}


if __name__ == "__main__":
    main(run)
