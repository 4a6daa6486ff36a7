"""A federated job in a real browser: it appears, its curves grow, its end shows, all without a reload. With `--browser-tests`."""

from __future__ import annotations

import os

import pytest
import torch
from playwright.async_api import expect
from test_dashboard import CHROMIUM, reader

import grid
from grid.gateway.http import HttpServer
from grid.settings import GatewaySettings
from grid.testing import LocalGrid

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]


def rows(seed: int) -> dict[str, object]:
    drawing = torch.Generator().manual_seed(seed)
    features = torch.randn(40, 4, generator=drawing)
    return {"rows": {"features": features, "targets": (features.sum(1) > 0).long(), "tags": ["#rows"]}}


async def test_a_job_is_followed_from_its_start_to_its_end() -> None:
    nodes = {name: rows(number) for number, name in enumerate(("alice", "bob", "carol"))}
    async with LocalGrid(nodes=nodes, gateway=GatewaySettings(port=0)) as local:
        async with HttpServer(local.gateway) as http, reader() as person:
            page, url = person.page, http.url.rstrip("/")
            await page.goto(f"{http.url}?token={local.gateway.token}")
            await person.open(f"{url}/jobs")
            await expect(page.locator("#list")).to_contain_text("No job has been started yet")
            g = await local.client()
            job = await g.train(
                torch.nn.Linear(4, 2),
                loss=torch.nn.functional.cross_entropy,
                datasets=await g.search("#rows"),
                rounds=30,
                local=grid.Local(batch_size=10),
                name="<b>digits</b>",
            )
            await expect(page.locator("#list tbody tr")).to_have_count(1)
            await page.get_by_role("link", name="<b>digits</b>").click()
            await person.live()
            await job.result()
            await expect(page.locator("h1 .state")).to_have_text("done")
            await expect(page.locator("#curves path.line")).to_have_count(2)
            await expect(page.locator("#rounds tbody tr")).to_have_count(31)
            await expect(page.locator("#what")).to_contain_text("summed under masks")
            if "GRID_SCREENSHOT" in os.environ:
                await page.screenshot(path=os.environ["GRID_SCREENSHOT"], full_page=True)
            await page.set_viewport_size({"width": 360, "height": 800})
            for path in ("/jobs", f"/jobs/{job.id}"):
                await person.open(url + path)
                assert await page.evaluate("document.documentElement.scrollWidth") <= 360, path
            assert person.problems == []
