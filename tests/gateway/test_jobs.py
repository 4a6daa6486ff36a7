"""Jobs over real job channels, with nodes that follow a script and real secure aggregation."""

from __future__ import annotations

import numpy as np
import pytest

from grid.rpc.dispatch import Handlers
from grid.wire.jobs import FetchWeights, JobWeights
from tests.federated.scripted_nodes import mean_step, some_nodes
from tests.gateway.job_site import JobSite


@pytest.mark.parametrize("secure", [True, False])
async def test_a_job_goes_from_start_to_model(secure: bool) -> None:
    nodes = some_nodes(4)
    async with JobSite(nodes) as site:
        spec = site.spec(rounds=3, secure=secure)
        watcher, card = await site.run(spec, np.zeros(10, "f4"))
        assert (card.state, card.round, card.error) == ("done", 3, None)
        step = mean_step(nodes)
        assert [report.round for report in watcher.reports] == [1, 2, 3, 3]
        losses = [report.metrics[0] for report in watcher.reports]
        assert np.allclose(losses, [(step * number) ** 2 for number in range(4)], rtol=1e-6, atol=1e-6)
        assert all(report.nodes == 4 and report.examples == 10 and report.bytes > 0 for report in watcher.reports)
        async with site.channel(site.client, Handlers({}), None) as peer:
            model = await peer.request(FetchWeights(job=spec.job))
        assert isinstance(model, JobWeights) and model.round == 3
        assert np.allclose(np.frombuffer(model.weights.data, "<f4"), 3 * step, rtol=1e-6)
        assert all(node.ended == ["the job is done"] for node in nodes)
