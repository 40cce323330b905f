from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from natwork_ray.domain.phases import MigrationMethod
from natwork_ray.domain.values import Backend
from natwork_ray.errors import InputError, PreconditionError
from natwork_ray.limi.dataset import MigrationRow
from natwork_ray.limi.features import EXTENT
from natwork_ray.limi.selector_card import Calibration, SelectorSettings
from natwork_ray.limi.selector_file import MAX_SELECTOR_BYTES, digest, loads, read_selector
from natwork_ray.limi.selector_training import data_digest, fold_of, train_selector


def test_training_is_a_function_of_rows_and_settings(
    rows: Sequence[MigrationRow], model: bytes, quick: SelectorSettings
) -> None:
    assert train_selector(rows, quick) == model
    assert train_selector(rows, replace(quick, seed=8)) != model


def test_the_card_says_where_it_comes_from(rows: Sequence[MigrationRow], model: bytes, quick: SelectorSettings) -> None:
    card = loads(model).card
    assert (card.runs, card.rows, card.trained_on) == (34 * 6, 34 * 6 * 4, Backend.EMULATED)
    assert card.settings == quick
    assert card.data_sha256 == data_digest(rows)
    assert [q.method for q in card.methods] == list(MigrationMethod)
    assert all(q.total_mape_pct < 25 for q in card.methods)
    assert all(q.total_p95_coverage >= 0.94 for q in card.methods)
    memory = next(r for r in card.seen if r.quantity == "memory_bytes")
    assert memory.low == min(r.load.memory_bytes for r in rows)
    assert len(card.seen) == len(EXTENT)


def test_a_run_lies_in_one_fold(rows: Sequence[MigrationRow], quick: SelectorSettings) -> None:
    folds: dict[str, set[int]] = {}
    for row, fold in zip(rows, fold_of(rows, quick).tolist(), strict=True):
        folds.setdefault(row.run, set()).add(fold)
    assert all(len(found) == 1 for found in folds.values())
    assert {f for found in folds.values() for f in found} == {0, 1}


def test_a_method_without_rows_is_left_out(rows: Sequence[MigrationRow], quick: SelectorSettings) -> None:
    without = [row for row in rows if row.method is not MigrationMethod.POST_COPY]
    methods = loads(train_selector(without, quick)).methods
    assert methods == (MigrationMethod.COLD, MigrationMethod.PRE_COPY, MigrationMethod.HYBRID)


def test_too_little_or_mixed_data_is_refused(rows: Sequence[MigrationRow], quick: SelectorSettings) -> None:
    with pytest.raises(InputError, match="no method has 20 rows"):
        train_selector(rows[:40], quick)
    with pytest.raises(InputError, match="mixed"):
        train_selector([*rows, replace(rows[0], backend=Backend.REAL)], quick)


def test_small_data_sets_still_tell_large_from_small(rows: Sequence[MigrationRow], quick: SelectorSettings) -> None:
    few = list(rows)[: 34 * 4]
    selector = loads(train_selector(few, replace(quick, leaf_rows=40)))
    cold = [row for row in few if row.method is MigrationMethod.COLD]
    smallest, largest = (pick(cold, key=lambda r: r.total_s) for pick in (min, max))
    assert selector.predict(largest.load)[0].total_p50_s > 2 * selector.predict(smallest.load)[0].total_p50_s


@pytest.mark.parametrize("wrong", [{"trees": 0}, {"learning_rate": 2.0}, {"folds": 1}, {"seed": -1}, {"leaves": 65}])
def test_settings_are_bounded(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="training setting"):
        SelectorSettings(**wrong)


def test_calibration_is_bounded() -> None:
    with pytest.raises(InputError, match="calibration"):
        Calibration(centre=9.0, shift=0.0)


def _card(change: Callable[[Any], None]) -> Callable[[Any], None]:
    return lambda document: change(document["card"])


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["trees"].pop(),
        lambda d: d["trees"].reverse(),
        lambda d: d["trees"][0].update(median=d["trees"][1]["median"]),
        lambda d: d.update(sha256="0" * 64),
        lambda d: d.update(more=1),
        _card(lambda c: c.update(format="natwork-selector/2")),
        _card(lambda c: c["features"].pop()),
        _card(lambda c: c["methods"].reverse()),
        _card(lambda c: c["methods"].clear()),
        _card(lambda c: c["seen"].pop()),
        _card(lambda c: c["methods"][0]["total"].update(centre=1e9)),
    ],
)
def test_a_changed_file_is_refused(model: bytes, change: Callable[[Any], None]) -> None:
    document = json.loads(model)
    change(document)
    with pytest.raises(InputError):
        loads(json.dumps(document).encode())


def test_what_is_no_selector_is_refused(model: bytes) -> None:
    for data in (b"", b"{}", model[:-100], b"\x80\x04.", b" " * (MAX_SELECTOR_BYTES + 1)):
        with pytest.raises(InputError):
            loads(data)


def test_a_file_is_read_with_its_digest(tmp_path: Path, model: bytes) -> None:
    path = tmp_path / "selector.json"
    path.write_bytes(model)
    selector, sha256 = read_selector(path)
    assert sha256 == digest(model)
    assert selector.methods == tuple(MigrationMethod)
    with pytest.raises(PreconditionError, match="train selector"):
        read_selector(tmp_path / "none.json")
    path.write_bytes(model[:-100])
    with pytest.raises(InputError, match=r"selector\.json is damaged: .*natwork train selector"):
        read_selector(path)


def test_the_packaged_selector_is_whole() -> None:
    selector, _ = read_selector()
    assert selector.methods == tuple(MigrationMethod)
    assert selector.card.settings == SelectorSettings()
    assert selector.card.rows == 6120


def test_without_lightgbm_it_says_how_to_get_it(model: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(PreconditionError, match="libgomp1"):
        loads(model)
