"""What takes a minute: rebuilding the shipped migration models from their seeds, and CubeMig's dumps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from natwork_ray.adapters.cubemig import read_dumps
from natwork_ray.cli.migrations import DATA_SEED, collected, plan_of
from natwork_ray.domain.values import Backend
from natwork_ray.emulation.collecting import expected_costs
from natwork_ray.limi.collection import REPETITIONS
from natwork_ray.limi.dump_times import judge_dumps
from natwork_ray.limi.run_table import RunTable, mape_pct, regret_pct
from natwork_ray.limi.selection import cost, pick
from natwork_ray.limi.selector_card import DEFAULT_WEIGHT
from natwork_ray.limi.selector_file import loads, read_selector
from natwork_ray.limi.selector_training import train_selector


def quiet(_done: int, _total: int, _what: str) -> None:
    """No progress bar."""


@pytest.mark.slow
def test_the_packaged_selector_can_be_rebuilt_from_its_seeds() -> None:
    """Rows and trees may differ in the last bits from one processor to the next; what is forecast may not."""
    packaged, _ = read_selector()
    plan, _ = plan_of(Backend.EMULATED, seed=DATA_SEED, runs=REPETITIONS, patterns=None)
    rows = collected(plan, quiet)
    rebuilt = loads(train_selector(rows))
    assert rebuilt.card.settings == packaged.card.settings
    assert (rebuilt.card.rows, rebuilt.card.runs) == (packaged.card.rows, packaged.card.runs)
    table = RunTable.of(rows)
    a, b = packaged.forecasts(table.loads), rebuilt.forecasts(table.loads)
    np.testing.assert_allclose(a.total_p50_s, b.total_p50_s, rtol=0.02)
    np.testing.assert_allclose(a.downtime_p95_s, b.downtime_p95_s, rtol=0.02)


@pytest.mark.slow
def test_the_packaged_selector_is_good_on_runs_of_another_seed() -> None:
    selector, _ = read_selector()
    plan, _ = plan_of(Backend.EMULATED, seed=4242, runs=6, patterns=None)
    table = RunTable.of(collected(plan, quiet))
    forecasts = selector.forecasts(table.loads)
    assert mape_pct(forecasts.total_p50_s, table.total_s) <= 10.0
    costs = expected_costs(table)
    chosen = pick(forecasts, weight=DEFAULT_WEIGHT, allowed=selector.methods)
    assert regret_pct(cost(costs.total_s, costs.downtime_s, DEFAULT_WEIGHT), chosen) <= 3.0


@pytest.mark.data
def test_published_dumps_are_foretold_about_as_well_as_a_line_can(data_dir: Path) -> None:
    report = judge_dumps(read_dumps(data_dir / "cubemig"))
    assert report.law_mape_pct < 17
    assert report.law_mape_pct < report.service_out_mape_pct < 20
