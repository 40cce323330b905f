"""Contestants on small synthetic services: they learn, they are repeatable, and odd requests are refused."""

from __future__ import annotations

import numpy as np
import pytest

from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.errors import InputError
from natwork_ray.profiling.evaluation import auc
from natwork_ray.profiling.model_card import TrainingSettings
from natwork_ray.profiling.reproduction import peers, training_check
from natwork_ray.profiling.reproduction.cells import Cell, Question, Split, rows_tested
from natwork_ray.profiling.reproduction.contestants import run_cell
from natwork_ray.profiling.reproduction.peers import choices_of, window_features

Runs = tuple[LabelledRun, ...]
# Where a contestant's score is a probability, it decides at one half; elsewhere it is a margin.
_DECIDES = {"annex-a": 0.5, "annex-a-raw": 0.5}


def _cell(
    model: str,
    split: Split = Split.BY_RUN,
    held: tuple[str, ...] = ("r2",),
    question: Question = Question.ANOMALOUS,
    **more: object,
) -> Cell:
    return Cell(question=question, model=model, split=split, held=held, seed=3, quick=True, **more)  # type: ignore[arg-type]


def _auc(runs: Runs, cell: Cell) -> float:
    result = run_cell(runs, cell)
    truth = np.concatenate([run.anomalous for run in runs])[rows_tested(runs, cell)]
    assert len(result.score) == len(result.flagged) == len(truth)
    assert [flag == 1 for flag in result.flagged] == [score >= _DECIDES.get(cell.model, 0.0) for score in result.score]
    return auc(truth, np.array(result.score))


@pytest.mark.parametrize(
    ("model", "reached"),
    [
        ("annex-a", 0.9),
        ("annex-a-raw", 0.7),
        ("mlp", 0.95),
        ("random-forest", 0.95),
        ("svm", 0.95),
        ("lightgbm", 0.95),
        ("normal-only", 0.8),
        ("largest-deviation", 0.9),
        ("constant-threshold", 0.5),
    ],
)
def test_binary_contestants_learn(runs: Runs, model: str, reached: float) -> None:
    assert _auc(runs, _cell(model)) > reached


@pytest.mark.parametrize("model", ["annex-a", "svm", "lightgbm", "normal-only"])
def test_a_service_that_was_never_seen(runs: Runs, model: str) -> None:
    assert _auc(runs, _cell(model, Split.UNSEEN_SERVICE, ("b",))) > 0.8


@pytest.mark.parametrize("model", ["annex-a", "lightgbm"])
def test_the_leaky_split(runs: Runs, model: str) -> None:
    result = run_cell(runs, _cell(model, Split.LEAKY, ("0",)))
    truth = np.concatenate([run.anomalous for run in runs])[rows_tested(runs, _cell(model, Split.LEAKY, ("0",)))]
    assert auc(truth, np.array(result.score)) > 0.9


@pytest.mark.parametrize("model", ["annex-a", "mlp", "random-forest", "svm", "lightgbm", "best"])
def test_types_are_told_apart(runs: Runs, model: str) -> None:
    cell = _cell(model, question=Question.KIND)
    kinds = np.array(run_cell(runs, cell).kinds)
    truth = np.concatenate([run.kinds for run in runs])[rows_tested(runs, cell)]
    assert np.mean(kinds[truth > 0] == truth[truth > 0]) > (0.3 if model == "annex-a" else 0.7)


def test_annex_a_on_a_type_that_was_never_shown(runs: Runs) -> None:
    cell = _cell("annex-a", Split.UNSEEN_TYPE, question=Question.KIND, without="high_cpu")
    result = run_cell(runs, cell)
    assert 1 not in result.kinds
    assert all(kind == 0 for kind, flag in zip(result.kinds, result.flagged, strict=True) if not flag)


def test_equal_seeds_equal_answers(runs: Runs) -> None:
    for model in ("random-forest", "lightgbm"):
        first, second = (run_cell(runs, _cell(model)) for _ in range(2))
        assert (first.score, first.flagged) == (second.score, second.flagged)


def test_choices_are_made_on_training_recordings_alone(runs: Runs) -> None:
    assert len(choices_of("svm", quick=False)) == 4
    assert [str(c) for c in choices_of("svm", quick=True)] == ["profile 1"]
    cell = Cell(question=Question.ANOMALOUS, model="svm", split=Split.BY_RUN, held=("r2",), seed=3)
    seen: list[tuple[int, int]] = []
    chosen = run_cell(runs, cell, lambda done, total, _what: seen.append((done, total)))
    assert seen == [(i, 5) for i in range(5)]
    assert chosen.choices.split()[0] in ("profile", "z-score")


def test_requests_that_make_no_sense(runs: Runs) -> None:
    for cell, said in (
        (_cell("gpt"), "no model 'gpt'"),
        (_cell("normal-only", question=Question.KIND), "does not name types"),
        (_cell("svm", Split.UNSEEN_TYPE, question=Question.KIND, without="surge"), "does not name unseen types"),
        (_cell("normal-only", Split.LEAKY, ("0",)), "not shown on the leaky split"),
    ):
        with pytest.raises(InputError, match=said):
            run_cell(runs, cell)


def test_the_normal_only_detector_needs_no_anomaly(runs: Runs) -> None:
    """Labels of anomalous rows change nothing that it says."""
    first = run_cell(runs, _cell(peers.NORMAL_ONLY))
    swapped = tuple(
        LabelledRun(
            service=run.service,
            run=run.run,
            backend=run.backend,
            step_s=run.step_s,
            values=run.values[: run.commissioning + 10],
            kinds=np.concatenate([np.zeros(run.commissioning, np.int8), np.ones(10, np.int8)]),
            commissioning=run.commissioning,
        )
        if run.run != "r2"
        else run
        for run in runs
    )
    assert len(first.flagged) == len(run_cell(swapped, _cell(peers.NORMAL_ONLY)).flagged)


def test_features_of_a_window() -> None:
    windows = np.zeros((1, 4, 12), dtype=np.float32)
    windows[0, :, 0] = [1, 2, 3, 6]
    newest, mean, spread, low, high, change = window_features(windows).reshape(6, 12)[:, 0]
    assert (newest, mean, low, high, change) == (6, 3, 1, 6, 3)
    assert spread == pytest.approx(np.std([1, 2, 3, 6]))


def test_a_training_is_checked_on_runs_it_did_not_see(runs: Runs) -> None:
    settings = TrainingSettings(detector="annex-a", epochs=3, batch=64, folds=2, window=4)
    cells = training_check.cells(runs, settings, seeds=2)
    assert [(cell.held, cell.seed) for cell in cells] == [((f"r{k}",), seed) for seed in (7, 8) for k in range(3)]
    results = {cell: run_cell(runs, cell) for cell in cells[:1]}
    row = training_check.row(runs, results)
    assert row.model == "annex-a"
    assert row.auc is not None
    assert row.f1 > 0
    assert len(row.f1_of_seeds) == 1
