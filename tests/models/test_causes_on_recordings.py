"""What docs/dependencies.md says of recorded incidents, within reach of a changed seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from natwork_ray.cli.causes_cases import recorded_cases
from natwork_ray.dependencies.evaluation import OURS, evaluate

pytestmark = pytest.mark.data


def test_causes_on_recordings(data_dir: Path) -> None:
    table = evaluate(recorded_cases(data_dir), seed=7)
    rows = {(r.data, r.kind): r for r in table.rows if r.model == OURS}
    plain = {(r.data, r.kind): r for r in table.rows if r.model == "robust scorer (after BARO)"}
    assert rows["sock shop", "all"].top_1 >= 0.95
    assert rows["nezha online-boutique", "all"].avg_5 >= 0.75
    for kind in ("cpu_consumed", "cpu_contention"):
        assert rows["nezha online-boutique", kind].top_1 == 1.0
    for data in ("sock shop", "nezha online-boutique", "nezha train-ticket"):
        assert rows[data, "all"].avg_5 > plain[data, "all"].avg_5
