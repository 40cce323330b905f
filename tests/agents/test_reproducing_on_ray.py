"""Cells fanned out over Ray give what a single process gives, and a failing one fails the command."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.domain.values import Backend
from natwork_ray.errors import InputError
from natwork_ray.profiling.reproduction import table_2
from natwork_ray.profiling.reproduction.contestants import run_cell
from natwork_ray.profiling.reproduction.tables import Demand


def _runs() -> tuple[LabelledRun, ...]:
    rng = np.random.default_rng(3)
    runs = []
    for name in ("1", "2", "3"):
        values = np.exp(0.05 * rng.standard_normal((80, 12))).astype(np.float32)
        values[50:65] *= 4
        kinds = np.zeros(80, dtype=np.int8)
        kinds[50:65] = 1
        runs.append(
            LabelledRun(
                service="s",
                run=name,
                backend=Backend.EMULATED,
                step_s=10.0,
                values=values,
                kinds=kinds,
                commissioning=40,
            )
        )
    return tuple(runs)


def test_many_hands_say_the_same(ray_cluster: Any) -> None:
    from agents.reproducing import fan_out

    runs = _runs()
    cells = table_2.cells(runs, Demand(models=("largest-deviation", "constant-threshold")))
    watched: list[int] = []
    results = dict(fan_out(runs, cells, workers=2, watching=lambda running: watched.append(len(running))))
    assert set(results) == set(cells)
    assert len(watched) == len(cells)
    assert max(watched) == 2
    for cell in cells:
        assert replace(results[cell], seconds=0.0) == replace(run_cell(runs, cell), seconds=0.0)


def test_nothing_to_do_is_done_at_once(ray_cluster: Any) -> None:
    from agents.reproducing import fan_out

    assert list(fan_out(_runs(), (), workers=2)) == []


def test_an_error_in_a_task_is_ours(ray_cluster: Any) -> None:
    from agents.reproducing import fan_out

    runs = _runs()
    (cell, *_) = table_2.cells(runs, Demand(models=("largest-deviation",)))
    with pytest.raises(InputError, match="no model"):
        list(fan_out(runs, [replace(cell, model="gpt")], workers=1))
