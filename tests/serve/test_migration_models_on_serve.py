"""The migration models on Serve answer as the selector in this process does."""

from __future__ import annotations

import asyncio

import httpx
import numpy as np
import pytest

from natwork_ray.domain.values import plain
from natwork_ray.limi.load_classes import FEASIBLE_CLASSES, draw_load
from natwork_ray.limi.selector_file import read_selector


def test_http_and_handle_agree_with_the_selector_in_process(http: httpx.Client) -> None:
    from ray import serve

    from agents.naming import SERVE_MIGRATION_MODELS

    selector, sha256 = read_selector()
    rng = np.random.default_rng(5)
    loads = [draw_load(each, rng) for each in FEASIBLE_CLASSES]
    here = selector.forecasts(loads)

    answer = http.post("/migration-models/predict", json={"loads": [plain(load) for load in loads]}).raise_for_status()
    document = answer.json()
    assert document["model"] == sha256
    found = [[f["total_p95_s"] for f in load["forecasts"]] for load in document["loads"]]
    np.testing.assert_allclose(found, here.total_p95_s, rtol=1e-12)

    body = {"loads": [plain(load) for load in loads], "weight": 0.5}
    choices = http.post("/migration-models/choose", json=body).raise_for_status().json()["choices"]
    assert [c["method"] for c in choices] == [selector.choose(load, weight=0.5).method for load in loads]

    async def by_handle() -> object:
        return await serve.get_app_handle(SERVE_MIGRATION_MODELS).forecasts.remote(loads)

    there = asyncio.run(by_handle())
    np.testing.assert_array_equal(getattr(there, "downtime_p50_s"), here.downtime_p50_s)  # noqa: B009 - a handle's answer
    assert http.get("/migration-models/model").json()["sha256"] == sha256
    assert http.post("/migration-models/predict", json={"loads": []}).status_code == 422
    assert pytest.approx(here.costs(0.5).min(axis=1)) == [c["cost_s"] for c in choices]
