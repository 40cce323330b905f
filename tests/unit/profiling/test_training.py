"""Training: learns, is reproducible, refuses what cannot be learnt from; Table 2 on synthetic and on real runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.domain.values import Backend
from natwork_ray.errors import InputError
from natwork_ray.profiling.detector import TwoStageDetector
from natwork_ray.profiling.fitting import balanced_weights, one_thread
from natwork_ray.profiling.model_card import TrainingSettings
from natwork_ray.profiling.model_file import loads
from natwork_ray.profiling.training import data_digest, train, train_profiler
from natwork_ray.profiling.windows import commissioning_book, cut

Runs = tuple[LabelledRun, ...]
_QUICK = TrainingSettings(detector="annex-a", epochs=1, batch=64, folds=2, window=4)
_BEST = TrainingSettings(folds=2, window=4, trees=10)


@pytest.mark.parametrize("which", ["best", "detector"])
def test_learns_synthetic_anomalies(
    which: str, request: pytest.FixtureRequest, make_run: Callable[..., LabelledRun]
) -> None:
    detector: TwoStageDetector = request.getfixturevalue(which)
    fresh = make_run("new", "fresh", 999, size=2.0)
    references = commissioning_book([fresh]).references(("new",) * len(fresh.kinds))
    scores = detector.score(cut(fresh.values, detector.window), references)
    found = scores.flagged & (scores.kinds == fresh.kinds)
    assert found[fresh.anomalous].mean() > 0.85
    assert scores.flagged[~fresh.anomalous].mean() < 0.05
    assert detector.card.out_of_fold.f1 > 0.85


def test_card_says_where_it_comes_from(detector: TwoStageDetector, runs: Runs, settings: TrainingSettings) -> None:
    card = detector.card
    assert card.settings == settings
    assert (card.trained_on, card.runs, card.windows) == (Backend.EMULATED, 3, sum(len(r.kinds) for r in runs))
    assert card.data_sha256 == data_digest(runs)
    assert card.made_with == f"torch {torch.__version__.partition('+')[0]}"


def test_same_runs_and_seed_give_the_same_bytes(runs: Runs) -> None:
    torch.manual_seed(1)
    first = train_profiler(runs, _QUICK)
    torch.manual_seed(2)
    assert train_profiler(runs, _QUICK) == first
    assert train_profiler(runs, replace(_QUICK, seed=8)) != first


def test_leaves_torch_as_it_was(runs: Runs) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    with one_thread(3):
        assert torch.get_num_threads() == 1
        torch.rand(100)
    assert torch.rand(1) == expected
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("settings", "steps"), [(_QUICK, (6, 3)), (_BEST, (4, 3))])
def test_progress_counts_up_to_its_total(runs: Runs, settings: TrainingSettings, steps: tuple[int, int]) -> None:
    for naming, expected in zip((True, False), steps, strict=True):
        seen: list[tuple[int, int, str]] = []
        train(runs, settings, lambda *told: seen.append(told), naming=naming)  # noqa: B023
        assert [done for done, _, _ in seen] == list(range(1, expected + 1))
        assert {total for _, total, _ in seen} == {expected}
        assert seen[0][2] == "stage 1, fold 1 of 2"


def test_unlabelled_kinds_are_left_out(runs: Runs) -> None:
    kinds = runs[0].kinds.copy()
    kinds[kinds == 0] = -1
    masked = (replace(runs[0], kinds=kinds), *runs[1:])
    windows = train(masked, _QUICK).card.windows
    assert windows == sum(int((r.kinds >= 0).sum()) for r in masked)


def test_refuses_what_cannot_be_learnt_from(runs: Runs) -> None:
    calm = tuple(replace(r, kinds=np.zeros_like(r.kinds)) for r in runs)
    with pytest.raises(InputError, match="only normal or only anomalous"):
        train(calm, _QUICK)
    for settings in (_QUICK, _BEST):
        with pytest.raises(InputError, match="split by run"):
            train(runs[:2], settings)
    with pytest.raises(InputError, match="all anomalies lie in run"):
        train((*runs[:2], *calm[2:]), _QUICK)
    with pytest.raises(InputError, match="without a sample"):
        train((), _QUICK)


def test_a_fleet_without_commissioning_is_stated_as_unprofiled(runs: Runs) -> None:
    bare = tuple(replace(r, commissioning=0) for r in runs)
    assert len(train(bare, _QUICK).card.fleet.unprofiled) == 12


def test_class_weights() -> None:
    targets = np.array([0] * 8 + [1] * 2)
    assert balanced_weights(targets, 3, power=1.0).tolist() == [1, 4, 1]
    assert balanced_weights(targets, 3, power=0.5).tolist() == [1, 2, 1]
    assert balanced_weights(targets, 3, power=0.0).tolist() == [1, 1, 1]


def test_model_bytes_load(runs: Runs) -> None:
    assert loads(train_profiler(runs, _QUICK)).window == 4
