"""Jobs on the dashboard and in the API: what is shown of them, that texts stay texts, that pages hear of changes."""

from __future__ import annotations

import math
from typing import Any

import pytest
from gateway_site import Site, site

from grid.crypto.identity import LocalIdentity
from grid.errors import QuorumLost
from grid.federated.progress import DONE, FAILED, Progress
from grid.gateway.charts import HEIGHT, WIDTH, curve
from grid.gateway.job_keeping import Kept
from grid.gateway.views import show_time
from grid.ids import PeerId
from grid.wire.jobs import RoundReport
from tests.federated.scripted_nodes import CLOCK, spec_of

HOSTILE = "<script>alert('x')</script>\" onmouseover=\"alert(1)\" {{ 7 * 7777 }}"
ENDED = CLOCK.wall() - 60
NODES = tuple(PeerId(letter * 26) for letter in "abc")


def reported(number: int, *metrics: float | None, text: str = "") -> RoundReport:
    return RoundReport(
        round=number, metrics=metrics, nodes=3, examples=30, seconds=0.25, bytes=1000, best=number == 1, text=text, clipped=number
    )


def put(made: Site, reports: list[RoundReport], state: str = DONE, **changes: Any) -> str:
    """A job that is over."""
    me = LocalIdentity.create(name="ann", role="client", clock=CLOCK)
    given = {"name": HOSTILE, "metrics": ("loss", "accuracy"), "strategy": {"kind": HOSTILE}, "rounds": 3, **changes}
    spec = spec_of(me, NODES, **given)
    error = QuorumLost(HOSTILE) if state == FAILED else None
    progress = Progress(state=state, done=len(reports), started=ENDED - 60, ended=ENDED, text=HOSTILE, error=error)
    made.grid.gateway.coordinator._over[spec.job] = Kept(None, None, None, progress, reports, given=spec)
    return spec.job


async def test_a_job_has_a_page_with_curves_rounds_and_facts() -> None:
    async with site() as made:
        reports = [reported(1, 2.5, 0.25), reported(2, None, 0.5, text=HOSTILE), reported(3), reported(3, 0.125, 0.75)]
        job = put(made, reports)
        for path in ("/jobs", f"/jobs/{job}", "/jobs?state=done&q=alert"):
            status, page, _ = await made.get(path)
            assert status == 200 and "<script>alert" not in page and '" onmouseover' not in page and "54439" not in page
            assert "&lt;script&gt;" in page
        _, page, _ = await made.get(f"/jobs/{job}")
        assert page.count('<path class="line dots"') == 2 and "summed under masks" in page
        assert "2.5 at first, 0.125 last" in page and "best so far" in page and f'data-job="{job}"' in page
        _, page, _ = await made.get("/jobs?state=failed")
        assert "No failed job matches" in page


async def test_jobs_are_in_the_api() -> None:
    async with site() as made:
        first = put(made, [reported(1, 2.5, 0.25), reported(2, None, 0.5)], name="first")
        put(made, [], FAILED, name="second")
        _, body, _ = await made.get("/api/v1/jobs")
        assert body["total"] == 2 and {one["name"] for one in body["jobs"]} == {"first", "second"}
        _, body, _ = await made.get("/api/v1/jobs?state=failed")
        assert body["jobs"][0]["error"]["code"] == "quorum-lost" and body["jobs"][0]["ended"] == show_time(ENDED)
        _, body, _ = await made.get(f"/api/v1/jobs/{first}?size=1&page=2")
        assert (body["id"], body["total"], body["pages"], body["secure"]) == (first, 2, 2, True)
        assert body["reports"][0]["metrics"] == {"loss": None, "accuracy": 0.5} and body["nodes"] == list(NODES)
        _, body, _ = await made.get(f"/api/v1/jobs/{first}/story")
        assert body == {"story": []}
        _, body, _ = await made.get("/api/v1/status")
        assert body["jobs"] == {"under_way": 0, "over": 2}
        _, text, _ = await made.get("/metrics")
        assert "grid_jobs 0.0" in text and "grid_job_rounds_total" in text


@pytest.mark.parametrize("path", ["/jobs/none", "/api/v1/jobs/none", "/api/v1/jobs/none/story"])
async def test_an_unknown_job_is_not_found(path: str) -> None:
    async with site() as made:
        status, _, _ = await made.get(path)
        assert status == 404


def test_a_curve_spans_its_values_and_leaves_gaps() -> None:
    made = curve([2.0, None, -2.0])
    assert (made.bottom, made.top, made.first, made.last) == (-2.0, 2.0, 2.0, -2.0)
    assert made.line == f"M0.0 0.0h0M{WIDTH:.1f} {HEIGHT:.1f}h0"
    assert curve([]).line == "" and curve([None]).line == "" and curve([None]).last is None
    assert curve([3.0, 3.0]).line == f"M0.0 {HEIGHT / 2:.1f}h0L{WIDTH:.1f} {HEIGHT / 2:.1f}"
    assert "nan" not in curve([1e308, -1e308, math.pi]).line
