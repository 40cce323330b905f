from __future__ import annotations

import pytest

from natwork_ray.errors import InputError
from natwork_ray.limi.dump_times import RecordedDump, judge_dumps
from natwork_ray.limi.phase_times import MIB, dump_s


def dumps(name: str, factor: float = 1.0) -> list[RecordedDump]:
    sizes = [m * MIB for m in (2.0, 10.0, 80.0)]
    return [RecordedDump(application=name, size_bytes=s, frozen_s=factor * dump_s(s)) for s in sizes]


def test_dumps_on_the_law_are_foretold() -> None:
    report = judge_dumps([*dumps("redis-0"), *dumps("redis_1M"), *dumps("mongo_10k")])
    assert report.dumps == 9
    assert report.law_mape_pct == pytest.approx(0)
    assert report.service_out_mape_pct == pytest.approx(0, abs=1e-6)
    assert set(report.service_out_mape_by_service_pct) == {"redis", "mongo"}


def test_a_slower_service_is_missed_by_what_the_others_say() -> None:
    report = judge_dumps([*dumps("redis-0"), *dumps("mongo_10k", 2.0)])
    assert report.service_out_mape_by_service_pct["mongo"] == pytest.approx(50)
    assert report.law_mape_pct == pytest.approx(25)


def test_one_service_cannot_be_left_out() -> None:
    with pytest.raises(InputError, match="1 services"):
        judge_dumps(dumps("redis"))
