"""Training: learns, is reproducible, refuses what cannot be learnt from; Table 2 on synthetic and on real runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.domain.values import Backend, plain
from natwork_ray.errors import InputError
from natwork_ray.profiling.detector import TwoStageDetector
from natwork_ray.profiling.fitting import balanced_weights, one_thread
from natwork_ray.profiling.model_card import TrainingSettings
from natwork_ray.profiling.model_file import loads
from natwork_ray.profiling.reproduce import BY_RUN, LEAKY, table_2
from natwork_ray.profiling.training import data_digest, train, train_profiler
from natwork_ray.profiling.windows import commissioning_book, cut

Runs = tuple[LabelledRun, ...]
_QUICK = TrainingSettings(epochs=1, batch=64, folds=2, window=4)


def test_learns_synthetic_anomalies(detector: TwoStageDetector, make_run: Callable[..., LabelledRun]) -> None:
    fresh = make_run("new", "fresh", 999, size=2.0)
    centre, scale = commissioning_book([fresh]).arrays(("new",) * len(fresh.kinds))
    scores = detector.score(cut(fresh.values, detector.window), centre, scale)
    found = scores.flagged & (scores.kinds == fresh.kinds)
    assert found[fresh.anomalous].mean() > 0.85
    assert scores.flagged[~fresh.anomalous].mean() < 0.05
    assert detector.card.out_of_fold.f1 > 0.85


def test_card_says_where_it_comes_from(detector: TwoStageDetector, runs: Runs, settings: TrainingSettings) -> None:
    card = detector.card
    assert card.settings == settings
    assert (card.trained_on, card.runs, card.windows) == (Backend.EMULATED, 3, sum(len(r.kinds) for r in runs))
    assert card.data_sha256 == data_digest(runs)
    assert card.torch_version == torch.__version__.partition("+")[0]


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


def test_progress_counts_up_to_its_total(runs: Runs) -> None:
    seen: list[tuple[int, int, str]] = []
    train(runs, _QUICK, lambda done, total, what: seen.append((done, total, what)))
    assert [done for done, _, _ in seen] == list(range(1, 7))
    assert {total for _, total, _ in seen} == {6}
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
    with pytest.raises(InputError, match="split by run"):
        train(runs[:2], _QUICK)
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


def test_table_2_on_synthetic_runs(runs: Runs) -> None:
    seen: list[int] = []
    table = table_2(runs, epochs=6, progress=lambda done, total, _what: seen.append(total - done))
    assert seen == list(range(10, -1, -1))
    assert [row.split for row in table.rows] == [BY_RUN, BY_RUN, LEAKY, BY_RUN, BY_RUN]
    assert table.rows[0].f1 > 0.8
    document = plain(table)
    assert set(document["rows"][0]) == {
        "model", "split", "accuracy", "precision", "recall", "f1", "auc", "f1_ci",
    }  # fmt: skip
    low, high = document["rows"][0]["f1_ci"]
    assert 0 <= low <= high <= 1
    assert [row["f1"] for row in document["published"]] == [0.8967, 0.8844, 0.8827, 0.8789]
    assert (document["samples"], document["runs"]) == (sum(len(r.kinds) for r in runs), ["r0", "r1", "r2"])


def test_table_2_bounds(runs: Runs) -> None:
    with pytest.raises(InputError, match="at least two runs"):
        table_2(runs[:2])
    with pytest.raises(InputError, match="0 epochs"):
        table_2(runs, epochs=0)
    with pytest.raises(InputError, match="only normal"):
        table_2([replace(r, kinds=np.zeros_like(r.kinds)) for r in runs])


def test_model_bytes_load(runs: Runs) -> None:
    assert loads(train_profiler(runs, _QUICK)).window == 4
