"""Cells: what is tested, what is kept apart, and under which name a result is kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.domain.values import Backend, decode, encode
from natwork_ray.errors import InputError, UsageError
from natwork_ray.profiling.reproduction.cells import (
    RANDOM_FOLDS,
    Cell,
    CellResult,
    Question,
    Split,
    by_run_cells,
    cell_key,
    code_digest,
    first_hour,
    rows_tested,
    run_order,
)
from natwork_ray.profiling.reproduction.mix import mixed_rows
from natwork_ray.profiling.reproduction.tables import Demand, data_of, pooled, rows_of
from natwork_ray.profiling.reproduction.trials import inner_folds, trial_of

Runs = tuple[LabelledRun, ...]


def _cell(split: Split = Split.BY_RUN, held: tuple[str, ...] = ("r0",), **more: object) -> Cell:
    return Cell(question=Question.ANOMALOUS, model="svm", split=split, held=held, seed=3, **more)  # type: ignore[arg-type]


def _run(service: str, run: str, rows: int, commissioning: int = 0) -> LabelledRun:
    return LabelledRun(
        service=service,
        run=run,
        backend=Backend.REPLAYED,
        step_s=10.0,
        values=np.ones((rows, 12), dtype=np.float32),
        kinds=np.zeros(rows, dtype=np.int8),
        commissioning=commissioning,
    )


def test_by_run_every_row_is_tested_once_by_a_model_of_the_others(runs: Runs) -> None:
    cells = by_run_cells(runs, Question.ANOMALOUS, Demand(models=("svm",)))
    rows = np.concatenate([rows_tested(runs, cell) for cell in cells])
    assert sorted(rows.tolist()) == list(range(sum(len(r.kinds) for r in runs)))
    for cell in cells:
        trial = trial_of(runs, cell)
        assert {r.run for r in trial.training}.isdisjoint(cell.held)
        assert {r.run for r in trial.tested} == set(cell.held)
        assert {r.run for r in trial.normal}.isdisjoint(cell.held)


def test_a_contestant_finds_no_label_of_rows_tested(runs: Runs) -> None:
    for split, held in ((Split.BY_RUN, ("r1",)), (Split.UNSEEN_SERVICE, ("a",))):
        for run in trial_of(runs, _cell(split, held)).tested:
            assert not run.anomalous.any()
            assert run.commissioning == 0


def test_profiles_of_a_trial_know_nothing_of_what_is_tested(runs: Runs) -> None:
    altered = tuple(replace(r, values=r.values * 50) if r.run == "r2" else r for r in runs)
    first, second = (trial_of(some, _cell(held=("r2",))).book for some in (runs, altered))
    assert first == second


def test_an_unseen_service_is_known_by_its_first_hour_only(runs: Runs) -> None:
    cell = _cell(Split.UNSEEN_SERVICE, ("b",))
    trial = trial_of(runs, cell)
    assert {r.service for r in trial.training} == {"a"}
    (hour,) = trial.normal
    assert (hour.service, hour.run, len(hour.kinds)) == ("b", "r0", hour.commissioning)
    later = tuple(
        replace(r, values=np.concatenate([r.values[: r.commissioning], r.values[r.commissioning :] * 9]))
        if r.service == "b"
        else r
        for r in runs
    )
    assert trial_of(later, cell).book == trial.book
    rows = rows_tested(runs, cell)
    assert len(rows) == sum(len(r.kinds) for r in runs if r.service == "b") - hour.commissioning


def test_the_first_hour_is_that_of_the_lowest_number() -> None:
    runs = (_run("s", "10", 5, 5), _run("s", "9", 5, 5), _run("s", "1", 5))
    assert first_hour(runs, "s") == 1
    with pytest.raises(InputError, match="no normal recording of t"):
        first_hour(runs, "t")
    assert sorted(["b", "10", "9", "a"], key=run_order) == ["9", "10", "a", "b"]


def test_the_leaky_split_deals_rows_out_at_random(runs: Runs) -> None:
    folds = [rows_tested(runs, _cell(Split.LEAKY, (str(k),))) for k in range(RANDOM_FOLDS)]
    assert sorted(np.concatenate(folds).tolist()) == list(range(sum(len(r.kinds) for r in runs)))


def test_a_type_that_is_left_out_is_nowhere_in_training(runs: Runs) -> None:
    whole = trial_of(runs, _cell()).training
    trial = trial_of(runs, _cell(Split.UNSEEN_TYPE, without="high_cpu"))
    for before, after in zip(whole, trial.training, strict=True):
        assert (before.kinds == 1).any()
        assert not (after.kinds == 1).any()
        assert len(after.kinds) == len(before.kinds) - int((before.kinds == 1).sum())
    assert any(run.anomalous.any() for run in trial.training)


def test_trials_that_cannot_be_held(runs: Runs) -> None:
    with pytest.raises(InputError, match="nothing to test"):
        trial_of(runs, _cell(held=("r9",)))
    with pytest.raises(InputError, match="only rows of one class"):
        trial_of(runs[:2], _cell())
    healthy = [replace(r, kinds=np.zeros_like(r.kinds)) for r in runs]
    with pytest.raises(InputError, match="only normal"):
        rows_of(healthy)
    with pytest.raises(InputError, match="only normal"):
        rows_of([])


def test_inner_folds_hold_out_some_of_every_service(runs: Runs) -> None:
    trial = trial_of(runs, _cell())
    folds = inner_folds(trial)
    assert sorted(i for fold in folds for i in fold) == list(range(len(trial.training)))
    for fold in folds:
        kept = {trial.training[i].service for i in range(len(trial.training)) if i not in fold}
        assert kept == {"a", "b"}
    three = tuple(replace(r, service=s) for r in runs[:2] for s in "abc")
    unseen = trial_of(three, _cell(Split.UNSEEN_SERVICE, ("c",)))
    assert [{unseen.training[i].service for i in fold} for fold in inner_folds(unseen)] == [{"a"}, {"b"}]
    with pytest.raises(InputError, match="one recording of each service"):
        inner_folds(replace(trial, training=trial.training[:1]))
    with pytest.raises(InputError, match="one service"):
        inner_folds(replace(unseen, training=unseen.training[:1]))


def test_cells_have_names_of_their_own_and_survive_json() -> None:
    cells = [
        _cell(),
        _cell(held=("r1",)),
        _cell(quick=True),
        _cell(without="surge"),
        _cell(Split.LEAKY),
    ]
    assert len({cell_key(cell, "d", "c") for cell in cells}) == len(cells)
    assert len({cell_key(cells[0], d, c) for d in "de" for c in "cd"}) == 4
    for cell in cells:
        assert decode(Cell, encode(cell)) == cell
        assert cell.model in cell.title
    assert "surge never shown" in cells[3].title
    assert code_digest() == code_digest()


def test_results_of_other_recordings_are_refused(runs: Runs) -> None:
    result = CellResult(score=(0.5,), flagged=(1,))
    with pytest.raises(InputError, match="has 1 rows, not"):
        pooled(runs, {_cell(): result}, question=Question.ANOMALOUS, model="svm", split=Split.BY_RUN, seed=3)


@given(st.lists(st.sampled_from([-1, 0, 0, 0, 0, 0, 1, 3]), max_size=300), st.integers(0, 9))
def test_the_mix_has_all_anomalies_of_known_type_and_few_normal_rows(kinds: list[int], seed: int) -> None:
    array = np.array(kinds, dtype=np.int8)
    chosen = mixed_rows(array, seed)
    anomalous = int((array > 0).sum())
    assert chosen[array > 0].all()
    assert not chosen[array < 0].any()
    assert chosen[array == 0].sum() == min(int((array == 0).sum()), round(300 / 1173 * anomalous))
    assert (mixed_rows(array, seed) == chosen).all()


@pytest.mark.parametrize(
    "given",
    [
        {"models": ()},
        {"models": ("svm", "svm")},
        {"models": ("gpt",)},
        {"models": ("svm",), "seeds": ()},
        {"models": ("svm",), "seeds": (1, 1)},
        {"models": ("svm",), "seeds": tuple(range(101))},
        {"models": ("svm",), "folds": 1},
    ],
)
def test_demands_that_make_no_sense(given: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Demand(**given)  # type: ignore[arg-type]


def test_what_the_figures_rest_on(runs: Runs) -> None:
    data = data_of(runs)
    assert (data.runs, data.services, data.recordings) == (("r0", "r1", "r2"), ("a", "b"), 6)
    assert 0 < data.anomalous < data.samples
