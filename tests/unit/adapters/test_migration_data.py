from __future__ import annotations

import fcntl
import gzip
import io
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pytest

from natwork_ray.adapters import migration_data
from natwork_ray.adapters.migration_data import CollectionFile, part_of, read_dataset, write_dataset
from natwork_ray.domain.migrations import ContainerLoad
from natwork_ray.domain.phases import MigrationMethod
from natwork_ray.domain.values import Backend
from natwork_ray.errors import ConflictError, InputError, PreconditionError
from natwork_ray.limi.collection import CollectionPlan, RunKey, class_names
from natwork_ray.limi.dataset import MigrationRow

METHODS = (MigrationMethod.COLD, MigrationMethod.HYBRID)
PLAN = CollectionPlan(
    backend=Backend.EMULATED, seed=5, repetitions=2, classes=(class_names()[3], class_names()[0]), methods=METHODS
)


def run(key: RunKey) -> tuple[MigrationRow, ...]:
    load = ContainerLoad(
        memory_bytes=1e8, dirty_bytes_per_s=1e6, working_set_bytes=4e7, cpu_cores=0.5, cpu_limit_cores=1.0,
        volume_bytes=5e7, volume_delta_bytes=1e6, volume_write_bytes_per_s=1e4, network_rx_bytes_per_s=1e3,
        network_tx_bytes_per_s=4e3, bandwidth_bytes_per_s=1.25e8, rtt_s=0.001, observed_s=5.0,
    )  # fmt: skip
    phases = (
        "pre_dump_s", "pre_dump_bytes", "pre_dump_transfer_s", "pre_dump_sent_bytes", "dump_s", "dump_bytes",
        "dump_transfer_s", "dump_sent_bytes", "volume_size_bytes", "volume_sent_bytes", "volume_transfer_s",
        "parallel_transfer_s", "restore_s", "lazy_pages_s", "lazy_pages_bytes", "approximate_downtime_s",
    )  # fmt: skip
    zeros = dict.fromkeys(phases, 0.0)
    return tuple(
        MigrationRow(
            load_class=key.load_class, repetition=key.repetition, method=method, backend=Backend.EMULATED, seed=5,
            load=load, total_s=1.5 + key.repetition, pre_copy_rounds=0, downtime_s=0.5, client_downtime_s=None, **zeros,
        )
        for method in METHODS
    )  # fmt: skip


def collect(out: Path, keys: Sequence[RunKey]) -> CollectionFile:
    collection = CollectionFile.open(out, PLAN)
    for key in keys:
        collection.append(run(key))
    return collection


@pytest.fixture
def finished(tmp_path: Path) -> bytes:
    """The file of a collection that nothing interrupted."""
    out = tmp_path / "whole" / "all.csv"
    out.parent.mkdir()
    with collect(out, PLAN.keys()) as collection:
        collection.finish()
    return out.read_bytes()


def test_a_finished_collection_is_read_back_and_leaves_no_part(tmp_path: Path) -> None:
    out = tmp_path / "data.csv.gz"
    with collect(out, PLAN.keys()[::-1]) as collection:
        assert (collection.done, collection.missing()) == (8, ())
        collection.finish()
    rows = read_dataset(out)
    assert rows == tuple(row for key in PLAN.keys() for row in run(key))  # noqa: SIM118
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("torn", range(0, 700, 53))
def test_a_kill_at_any_byte_loses_what_was_under_way_and_nothing_else(
    tmp_path: Path, finished: bytes, torn: int
) -> None:
    out = tmp_path / "data.csv"
    keys = PLAN.keys()
    with collect(out, keys[:2]):
        whole = part_of(out).stat().st_size
    with collect(out, keys[2:3]):
        grown = part_of(out).read_bytes()
    part_of(out).write_bytes(grown[: min(len(grown), whole + torn)])
    with CollectionFile.open(out, PLAN) as again:
        assert again.done in (4, 6)
        assert set(again.missing()) <= set(keys[2:])
        for key in again.missing():
            again.append(run(key))
        again.finish()
    assert out.read_bytes() == finished


def test_it_cannot_be_finished_before_its_end(tmp_path: Path) -> None:
    out = tmp_path / "data.csv"
    with collect(out, PLAN.keys()[:1]) as collection, pytest.raises(ConflictError, match="3 runs are missing"):
        collection.finish()
    assert not out.exists()
    assert part_of(out).exists()


def test_a_run_that_comes_twice_counts_once(tmp_path: Path) -> None:
    with collect(tmp_path / "data.csv", [PLAN.keys()[0]] * 2) as collection:
        assert collection.done == 2


def test_other_parameters_are_refused_and_described(tmp_path: Path) -> None:
    out = tmp_path / "data.csv"
    collect(out, PLAN.keys()[:1]).__exit__(None, None, None)
    with pytest.raises(ConflictError, match="emulated, seed 5, 2 repetitions of 2 classes under 2 methods"):
        CollectionFile.open(out, replace(PLAN, seed=6))
    part_of(out).write_text("something else\n", encoding="utf-8")
    with pytest.raises(ConflictError, match="no plan"):
        CollectionFile.open(out, PLAN)


def test_a_part_file_that_was_written_to_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "data.csv"
    collect(out, PLAN.keys()[:1]).__exit__(None, None, None)
    with part_of(out).open("a", encoding="utf-8") as part:
        part.write("emulated,1\n")
    with pytest.raises(InputError, match=r"\.data\.csv\.part is damaged: line 4.*--restart"):
        CollectionFile.open(out, PLAN)
    with CollectionFile.open(out, PLAN, restart=True) as anew:
        assert anew.done == 0
    with CollectionFile.open(out, PLAN) as again:
        assert again.done == 0


def test_a_run_with_a_row_missing_before_others_is_damage(tmp_path: Path) -> None:
    out = tmp_path / "data.csv"
    collect(out, PLAN.keys()[:2]).__exit__(None, None, None)
    lines = part_of(out).read_bytes().splitlines(keepends=True)
    part_of(out).write_bytes(b"".join([lines[0], *lines[2:]]))
    with pytest.raises(InputError, match=r"damaged: run .* has 1 of 2 rows"):
        CollectionFile.open(out, PLAN)


def test_a_part_file_is_read_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "data.csv"
    collect(out, PLAN.keys()[:1]).__exit__(None, None, None)
    monkeypatch.setattr(migration_data, "MAX_BYTES", 100)
    with pytest.raises(InputError, match=r"\.data\.csv\.part has more than"):
        CollectionFile.open(out, PLAN)


def test_going_on_never_writes_again_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "data.csv"
    collect(out, PLAN.keys()[:2]).__exit__(None, None, None)
    kept = part_of(out).read_bytes()
    part_of(out).write_bytes(kept + b"torn")

    def killed(_descriptor: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            CollectionFile.open(out, PLAN)
    assert part_of(out).read_bytes() == kept
    with CollectionFile.open(out, PLAN) as again:
        assert again.done == 4


def test_two_collections_into_one_file_are_kept_apart(tmp_path: Path) -> None:
    out = tmp_path / "data.csv"
    with collect(out, PLAN.keys()) as first:
        kept = part_of(out).read_bytes()
        for restart in (False, True):
            with pytest.raises(ConflictError, match=r"\.data\.csv\.part is in use"):
                CollectionFile.open(out, PLAN, restart=restart)
        assert part_of(out).read_bytes() == kept
        first.finish()
    with CollectionFile.open(out, PLAN) as next_one:
        assert next_one.done == 0


def test_a_lock_on_a_file_that_its_holder_deleted_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "data.csv"
    first = collect(out, PLAN.keys())
    flock = fcntl.flock

    def late(part: BinaryIO, operation: int) -> None:
        if not out.exists():
            first.finish()
        flock(part, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with CollectionFile.open(out, PLAN) as second:
        assert second.done == 0
        second.append(run(PLAN.keys()[0]))
    assert len(read_dataset(out)) == 8
    with CollectionFile.open(out, PLAN) as again:
        assert again.done == 2


def test_equal_rows_give_equal_bytes() -> None:
    rows = run(PLAN.keys()[0])
    first, second = io.BytesIO(), io.BytesIO()
    for stream in (first, second):
        write_dataset(stream, rows, compressed=True)
    assert first.getvalue() == second.getvalue()


def test_files_that_are_no_data_set_are_refused(
    tmp_path: Path, finished: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PreconditionError, match="natwork migrations collect"):
        read_dataset(tmp_path / "none.csv")
    plain, packed = tmp_path / "a.csv", tmp_path / "a.csv.gz"
    packed.write_bytes(finished)
    with pytest.raises(InputError, match="no gzip file"):
        read_dataset(packed)
    packed.write_bytes(gzip.compress(finished)[:-30])
    with pytest.raises(InputError, match="cut off"):
        read_dataset(packed)
    plain.write_bytes(finished.replace(b"cold", b"c\xc3\xb6ld", 1))
    with pytest.raises(InputError, match=r"a\.csv: line 2, column method"):
        read_dataset(plain)
    plain.write_bytes(finished)
    monkeypatch.setattr(migration_data, "MAX_BYTES", 100)
    with pytest.raises(InputError, match="MiB of text"):
        read_dataset(plain)
