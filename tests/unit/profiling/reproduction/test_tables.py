"""Tables from results that are made up: every figure can be counted by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from natwork_ray.domain.anomaly import STAGE_2_CLASSES, AnomalyKind
from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.domain.values import plain
from natwork_ray.errors import InputError
from natwork_ray.profiling.evaluation import f1_interval
from natwork_ray.profiling.reproduction import events, published, table_2, table_3, unknown, unseen_service
from natwork_ray.profiling.reproduction.cells import Cell, CellResult, Split, rows_tested
from natwork_ray.profiling.reproduction.events import account
from natwork_ray.profiling.reproduction.figures import binary_interval
from natwork_ray.profiling.reproduction.tables import Demand

Runs = tuple[LabelledRun, ...]
UNKNOWN = STAGE_2_CLASSES.index(AnomalyKind.UNKNOWN)
DEMAND = Demand(models=("annex-a", "svm"), seeds=(1, 2))


def _perfect(runs: Runs, cells: tuple[Cell, ...]) -> dict[Cell, CellResult]:
    kinds = np.concatenate([run.kinds for run in runs])
    results = {}
    for cell in cells:
        own = kinds[rows_tested(runs, cell)]
        results[cell] = CellResult(
            score=tuple(float(k != 0) for k in own),
            flagged=tuple(int(k != 0) for k in own),
            kinds=tuple(int(k) for k in own),
        )
    return results


def test_table_2_of_perfect_answers(runs: Runs) -> None:
    cells = table_2.cells(runs, DEMAND)
    table = table_2.table(runs, DEMAND, _perfect(runs, cells))
    assert [(row.model, row.split) for row in table.rows] == [
        ("Annex A 1D-CNN", Split.BY_RUN),
        ("SVM", Split.BY_RUN),
        ("Annex A 1D-CNN", Split.LEAKY),
    ]
    for row in table.rows:
        assert (row.accuracy, row.precision, row.recall, row.f1, row.auc) == (1, 1, 1, 1, 1)
        assert (row.f1_ci, row.f1_of_seeds) == ((1.0, 1.0), (1.0, 1.0))
    document = plain(table)
    assert set(document) == {"rows", "published", "demand", "data", "definitions"}
    assert {"model", "split", "accuracy", "precision", "recall", "f1", "auc", "f1_ci"} <= set(document["rows"][0])
    assert [row["f1"] for row in document["published"]] == [0.8967, 0.8844, 0.8827, 0.8789]


def test_seeds_are_averaged_not_picked(runs: Runs) -> None:
    demand = Demand(models=("svm",), seeds=(1, 2))
    results = _perfect(runs, table_2.cells(runs, demand))
    blind = {
        cell: replace(result, flagged=(0,) * len(result.flagged)) if cell.seed == 2 else result
        for cell, result in results.items()
    }
    (row,) = table_2.table(runs, demand, blind).rows
    assert (row.f1, row.f1_of_seeds) == (0.5, (1.0, 0.0))
    assert row.f1_ci == (0.5, 0.5)


def test_the_interval_of_one_seed_is_that_of_the_library(runs: Runs) -> None:
    rng = np.random.default_rng(5)
    truth = rng.random(300) < 0.3
    flagged = truth ^ (rng.random(300) < 0.1)
    unit = np.repeat(np.arange(10), 30)
    assert binary_interval(truth, [flagged], unit) == pytest.approx(f1_interval(truth, flagged, unit, seed=7))


def test_published_rows_that_contradict_themselves_say_so() -> None:
    for row in published.TABLE_2:
        implied = 2 * row.precision * row.recall / (row.precision + row.recall)
        assert (abs(implied - row.f1) > 0.001) == bool(row.remark), row.model
    assert [row.f1 for row in published.TABLE_3] == [0.8964, 0.8584, 0.9034, 0.8192]
    assert all(row.remark for row in published.TABLE_3)


def test_table_3_of_perfect_and_of_lazy_answers(runs: Runs) -> None:
    demand = Demand(models=("svm",))
    results = _perfect(runs, table_3.cells(runs, demand))
    (row,) = table_3.table(runs, demand, results).rows
    assert (row.accuracy, row.f1, row.macro_f1, *row.macro_f1_ci) == pytest.approx((1, 1, 1, 1, 1))
    anomalous = sum(int((run.kinds > 0).sum()) for run in runs)
    assert row.mix["false_positive"] == round(300 / 1173 * anomalous)
    assert sum(row.mix.values()) == anomalous + row.mix["false_positive"]
    lazy = {cell: replace(result, kinds=(1,) * len(result.kinds)) for cell, result in results.items()}
    (row,) = table_3.table(runs, demand, lazy).rows
    share = row.mix["high_cpu"] / sum(row.mix.values())
    assert row.accuracy == row.recall == pytest.approx(share)
    assert row.precision == pytest.approx(share**2)
    assert row.macro_f1 == pytest.approx(2 * share / (1 + share) / len(row.mix))
    untyped = [replace(run, kinds=np.where(run.kinds > 0, np.int8(-1), run.kinds)) for run in runs]
    with pytest.raises(InputError, match="known type"):
        table_3.cells(untyped, demand)


def test_unseen_services_pooled_and_one_by_one(runs: Runs) -> None:
    demand = Demand(models=("svm",))
    results = _perfect(runs, unseen_service.cells(runs, demand))
    wrong_on_b = {
        cell: replace(result, flagged=tuple(1 - f for f in result.flagged)) if cell.held == ("b",) else result
        for cell, result in results.items()
    }
    table = unseen_service.table(runs, demand, wrong_on_b)
    assert [row.split for row in table.rows] == ["unseen service, pooled", "unseen service, a", "unseen service, b"]
    assert [row.accuracy for row in table.rows] == pytest.approx([0.5, 1.0, 0.0], abs=1e-6)
    with pytest.raises(InputError, match="at least two services"):
        unseen_service.cells([run for run in runs if run.service == "a"], demand)


def test_unknown_counts_each_share_among_its_rows(runs: Runs) -> None:
    demand = Demand(models=("annex-a",))
    cells = unknown.cells(runs, demand)
    assert {cell.without for cell in cells} == {"high_cpu", "high_memory", "network_latency", "surge"}
    results = {}
    kinds = np.concatenate([run.kinds for run in runs])
    for cell in cells:
        own = kinds[rows_tested(runs, cell)]
        left_out = {"high_cpu": 1, "high_memory": 2, "surge": 4, "network_latency": 5}[cell.without]
        # Half of the left-out rows are named Unknown, every normal row is flagged, everything known is called Unknown.
        said = np.where(own == left_out, np.where(np.arange(len(own)) % 2, UNKNOWN, 1), UNKNOWN)
        said[own == 0] = 2
        results[cell] = CellResult(score=(0.0,) * len(own), flagged=(1,) * len(own), kinds=tuple(map(int, said)))
    table = unknown.table(runs, demand, results)
    assert [row.held_out for row in table.rows] == ["high_cpu", "high_memory", "network_latency", "surge", "mean"]
    for row in table.rows:
        assert (row.flagged, row.normal_flagged, row.known_called_unknown) == (1, 1, 1)
        assert row.named_unknown == pytest.approx(0.5, abs=0.05)
        assert row.recall == pytest.approx(row.named_unknown)
    one_type = [replace(run, kinds=np.where(run.kinds > 1, np.int8(0), run.kinds)) for run in runs]
    with pytest.raises(InputError, match="anomalies of 1 known types"):
        unknown.cells(one_type, demand)


def _labelled(make_run_from: LabelledRun, labels: str) -> LabelledRun:
    kinds = np.array([int(c) for c in labels], dtype=np.int8)
    return replace(make_run_from, kinds=kinds, values=np.ones((len(kinds), 12), dtype=np.float32), commissioning=0)


@pytest.mark.parametrize(
    ("labels", "alarms", "grace", "found", "delay", "false"),
    [
        ("0011100000", "0000100000", 0, 1, 2.0, 0),
        ("0011100000", "0000011000", 0, 0, None, 1),  # after the event: found nothing, and is false without grace
        ("0011100000", "0000011000", 2, 0, None, 0),  # grace explains an alarm, and finds no event
        ("0011100000", "0000011111", 1, 0, None, 0),  # one run of alarms, part of it explained
        ("0011100000", "1101001011", 0, 1, 1.0, 3),
        ("1100000011", "1000000001", 0, 2, 0.5, 0),
        ("0000000001", "1010101010", 0, 0, None, 5),
        ("0011100000", "0111000000", 0, 1, 0.0, 0),  # began before the event and touches it
    ],
)
def test_events(runs: Runs, labels: str, alarms: str, grace: int, found: int, delay: float | None, false: int) -> None:
    run = _labelled(runs[0], labels)
    alarmed = np.array([c == "1" for c in alarms])
    told = account([run], alarmed, alarmed, grace=grace)
    assert (told.found, told.mean_delay, told.false_alarms) == (found, delay, false)
    assert told.events == found + len(told.missed)
    assert told.false_alarms_per_hour == pytest.approx(false * 360 / len(labels))


def test_events_end_with_their_recording(runs: Runs) -> None:
    both = [_labelled(runs[0], "0001"), _labelled(runs[1], "1000")]
    alarmed = np.array([False] * 4 + [True] + [False] * 3)
    told = account(both, alarmed, alarmed, grace=0)
    assert (told.events, told.found, told.false_alarms) == (2, 1, 0)
    assert told.missed == ("a r0 4-4",)
    assert account([], alarmed[:0], alarmed[:0], grace=0).false_alarms_per_hour == 0


def test_the_events_table_uses_alarms_where_there_are_some(runs: Runs) -> None:
    demand = Demand(models=("svm",))
    results = _perfect(runs, events.cells(runs, demand))
    (row,) = events.table(runs, demand, results).rows
    assert (row.found, row.found_share, row.mean_delay, row.false_alarms_per_hour) == (row.events, 1, 0, 0)
    silent = {cell: replace(result, fires=(0,) * len(result.flagged)) for cell, result in results.items()}
    (row,) = events.table(runs, demand, silent).rows
    assert (row.found, row.mean_delay, len(row.missed)) == (0, None, row.events)


def test_an_alarm_that_is_only_still_open_finds_nothing(runs: Runs) -> None:
    run = _labelled(runs[0], "0001100")
    fires, opened = (np.array([c == "1" for c in text]) for text in ("0100000", "0111110"))
    told = account([run], fires, opened, grace=0)
    assert (told.found, told.false_alarms) == (0, 0)
