from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natwork_ray.domain.migrations import ContainerLoad, MigrationRecord, MigrationState
from natwork_ray.domain.phases import MigrationMethod, Phase
from natwork_ray.domain.values import Backend
from natwork_ray.errors import InputError
from natwork_ray.limi import dataset
from natwork_ray.limi.dataset import COLUMNS, MigrationRow, dataset_lines, parse_dataset, row_of, runs_of
from natwork_ray.limi.load_classes import FEASIBLE_CLASSES
from natwork_ray.limi.steps import Verb

LOAD = ContainerLoad(
    memory_bytes=1e8, dirty_bytes_per_s=1e6, working_set_bytes=4e7, cpu_cores=0.5, cpu_limit_cores=1.0,
    volume_bytes=5e7, volume_delta_bytes=1e6, volume_write_bytes_per_s=1e4, network_rx_bytes_per_s=1e3,
    network_tx_bytes_per_s=4e3, bandwidth_bytes_per_s=1.25e8, rtt_s=0.001, observed_s=5.0,
)  # fmt: skip


def phase(verb: Verb, starts: float, lasts: float, size: float = 0.0, sent: float = 0.0) -> Phase:
    return Phase(name=verb.value, starts_s=starts, duration_s=lasts, size_bytes=size, transferred_bytes=sent)


def record(**changes: Any) -> MigrationRecord:
    phases = (
        phase(Verb.PRE_DUMP, 0.0, 0.2, size=1e8),
        phase(Verb.PRE_DUMP_TRANSFER, 0.2, 1.0, size=1e8, sent=1e8),
        phase(Verb.PRE_DUMP, 1.2, 0.1, size=2e7),
        phase(Verb.PRE_DUMP_TRANSFER, 1.3, 0.2, size=2e7, sent=1.5e7),
        phase(Verb.FREEZE, 1.5, 0.01),
        phase(Verb.DUMP, 1.51, 0.1, size=5e6),
        phase(Verb.VOLUME_TRANSFER, 1.51, 0.5, size=5e7, sent=1e6),
        phase(Verb.DUMP_TRANSFER, 1.61, 0.1, size=5e6, sent=4e6),
        phase(Verb.ADDRESS_DETACH, 1.55, 0.01),
        phase(Verb.RESTORE, 2.01, 0.2),
        phase(Verb.ADDRESS_MOVE, 2.21, 0.05),
    )
    usual = MigrationRecord(
        key="k", container="c", source="a", target="b", method=MigrationMethod.PRE_COPY, backend=Backend.EMULATED,
        state=MigrationState.MIGRATED, started_at_s=0.0, total_s=2.26, downtime_s=0.76, runs_on="b", phases=phases,
        pre_copy_rounds=2, client_downtime_s=0.9, load=LOAD,
    )  # fmt: skip
    return replace(usual, **changes)


def row(**changes: Any) -> MigrationRow:
    return row_of(record(**changes), load_class=FEASIBLE_CLASSES[0], repetition=0, seed=1)


def test_every_feature_of_the_deliverable_has_a_column_with_its_unit() -> None:
    assert {
        "total_s", "pre_dump_s", "pre_dump_bytes", "pre_dump_transfer_s", "dump_s", "dump_bytes", "dump_transfer_s",
        "volume_size_bytes", "volume_sent_bytes", "volume_transfer_s", "parallel_transfer_s", "restore_s",
        "approximate_downtime_s", "client_downtime_s",
    } <= set(COLUMNS)  # fmt: skip
    units = ("_s", "_bytes", "_cores")
    bare = {c for c in COLUMNS if not c.endswith(units)}
    assert bare == {"run", "load_class", "repetition", "method", "backend", "seed", "pre_copy_rounds"}


def test_phases_become_features() -> None:
    made = row()
    assert made.pre_dump_s == pytest.approx(0.3)
    assert (made.pre_dump_bytes, made.pre_dump_sent_bytes) == (1.2e8, 1.15e8)
    assert made.approximate_downtime_s == pytest.approx(0.1 + 0.1 + 0.2)
    # Volume 1.51 to 2.01 covers dump transfer and detach; the address move comes on its own.
    assert made.parallel_transfer_s == pytest.approx(0.55)
    assert (made.volume_size_bytes, made.volume_sent_bytes) == (5e7, 1e6)
    assert made.lazy_pages_s == 0


def test_what_is_no_migration_or_was_not_measured_is_no_row() -> None:
    with pytest.raises(InputError, match="rolled_back: no room"):
        row(state=MigrationState.ROLLED_BACK, error="no room")
    with pytest.raises(InputError, match="has no load"):
        row(load=None)


def test_text_and_rows_are_the_same(rows: Sequence[MigrationRow]) -> None:
    text = "".join(dataset_lines(rows))
    assert tuple(parse_dataset(text.splitlines(keepends=True))) == tuple(rows)


def test_a_downtime_that_nobody_saw_is_empty_not_zero() -> None:
    unseen = row(client_downtime_s=None)
    (_, line) = dataset_lines([unseen])
    assert line.endswith(",\n")
    assert next(parse_dataset(dataset_lines([unseen]))).client_downtime_s is None


@given(total=st.floats(0, 1e6), sent=st.floats(0, 1e13))
def test_any_row_survives_the_text(total: float, sent: float) -> None:
    lazy = (phase(Verb.PAGES_FETCHED, 0.0, total, sent=sent),)
    made = row(method=MigrationMethod.POST_COPY, total_s=total, phases=lazy)
    assert list(parse_dataset(dataset_lines([made]))) == [made]


@pytest.mark.parametrize(
    ("column", "cell", "expected"),
    [
        ("method", "warm", "one of cold"),
        ("backend", "", "one of real"),
        ("load_class", "cpu-low_memory-high_storage-low_network-zero", "34 load classes"),
        ("repetition", "-1", "a whole number"),
        ("total_s", "nan", "plain decimal"),
        ("total_s", "1e3", "plain decimal"),
        ("total_s", "", "plain decimal"),
        ("memory_bytes", "-5", "plain decimal"),
        ("memory_bytes", "٣", "plain decimal"),
        ("bandwidth_bytes_per_s", "0", "above 0"),
        ("run", "emulated-2-x-0", "is not"),
    ],
)
def test_a_wrong_cell_is_named_by_line_and_column(column: str, cell: str, expected: str) -> None:
    head, line = dataset_lines([row()])
    cells = line.rstrip("\n").split(",")
    cells[COLUMNS.index(column)] = cell
    with pytest.raises(InputError, match=expected) as refused:
        list(parse_dataset([head, ",".join(cells) + "\n"]))
    assert f"line 2, column {column}" in refused.value.what


def test_a_file_that_is_none_is_refused() -> None:
    head, line = dataset_lines([row()])
    for lines, said in (
        ([], "empty"),
        (["a,b\n"], "column 1"),
        ([",".join(COLUMNS[:-1]) + "\n"], "columns, not"),
        ([head, line, line], "there already"),
        ([head, line.rstrip("\n") + ",1\n"], "columns, not"),
        ([head, "x" * 5000], "characters"),
        ([head, '"' + line], "column run"),
    ):
        with pytest.raises(InputError, match=said):
            list(parse_dataset(lines))


def test_the_number_of_rows_is_bounded(monkeypatch: pytest.MonkeyPatch, rows: Sequence[MigrationRow]) -> None:
    monkeypatch.setattr(dataset, "MAX_ROWS", 3)
    with pytest.raises(InputError, match="more than 3 rows"):
        list(parse_dataset(dataset_lines(rows[:4])))


def test_runs_hold_their_methods_in_order(rows: Sequence[MigrationRow]) -> None:
    runs = runs_of(rows[::-1])
    assert len(runs) == 34 * 6
    assert all([r.method for r in group] == list(MigrationMethod) for group in runs.values())
