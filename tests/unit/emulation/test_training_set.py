"""Training runs: labels, shapes, determinism."""

from __future__ import annotations

import numpy as np
import pytest

from natwork_ray.domain.anomaly import STAGE_2_CLASSES, AnomalyKind
from natwork_ray.domain.values import Backend
from natwork_ray.emulation.scenarios import smart_city
from natwork_ray.emulation.training_set import labelled_runs
from natwork_ray.errors import UsageError


def test_runs_are_labelled_and_reproducible() -> None:
    runs = labelled_runs(seed=4, runs=2, hours=2.0)
    # The first run alone is the same as beside another: each has a seed of its own.
    again = labelled_runs(seed=4, runs=1, hours=2.0)
    assert len(runs) == 32
    assert len({r.run for r in runs}) == 2
    assert len({(r.run, r.service) for r in runs}) == 32
    for a, b in zip(runs[:16], again, strict=True):
        np.testing.assert_array_equal(a.values, b.values)
        np.testing.assert_array_equal(a.kinds, b.kinds)
    kinds = np.concatenate([r.kinds for r in runs])
    assert set(np.unique(kinds)) == {-1, *range(len(STAGE_2_CLASSES))}
    assert 0.03 < (kinds > 0).mean() < 0.2
    for r in runs:
        assert r.backend is Backend.EMULATED
        assert r.values.shape == (720, 12)
        assert r.commissioning == 360
        assert (r.kinds[: r.commissioning] == 0).all()
    assert not np.array_equal(labelled_runs(seed=5, runs=1, hours=2.0)[0].values, runs[0].values)


def test_a_named_scenario_and_chosen_kinds() -> None:
    runs = labelled_runs(smart_city(), seed=4, runs=1, hours=1.5, per_kind={"ddos": 2})
    assert [r.service for r in runs] == [c.service for c in smart_city().topology.containers]
    labelled = np.unique(np.concatenate([r.kinds for r in runs]))
    assert set(labelled) <= {-1, 0, STAGE_2_CLASSES.index(AnomalyKind.UNKNOWN)}
    assert STAGE_2_CLASSES.index(AnomalyKind.UNKNOWN) in labelled


@pytest.mark.parametrize(("runs", "hours"), [(0, 2.0), (1, 1.0), (1, float("nan")), (1, 1000.0)])
def test_senseless_sizes_are_refused(runs: int, hours: float) -> None:
    with pytest.raises(UsageError):
        labelled_runs(seed=1, runs=runs, hours=hours)
