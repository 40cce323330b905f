"""Finished cells: kept whole, found again, and never taken for those of other data or code."""

from __future__ import annotations

from pathlib import Path

import pytest

from natwork_ray.adapters import finished_cells
from natwork_ray.adapters.finished_cells import FinishedCells
from natwork_ray.errors import InputError, StoreError
from natwork_ray.profiling.reproduction.cells import Cell, CellResult, Question, Split

CELL = Cell(question=Question.ANOMALOUS, model="svm", split=Split.BY_RUN, held=("1",), seed=7)
RESULT = CellResult(
    score=(0.25, -1.5), flagged=(1, 0), fires=(1, 0), opened=(1, 1), kinds=(3, 0), choices="z", seconds=1.5
)


def test_what_is_kept_is_found_again(tmp_path: Path) -> None:
    kept = FinishedCells(tmp_path / "deep" / "work", data="d", code="c")
    assert kept.load(CELL) is None
    kept.save(CELL, RESULT)
    assert FinishedCells(tmp_path / "deep" / "work", data="d", code="c").load(CELL) == RESULT
    assert [p.suffix for p in (tmp_path / "deep" / "work").iterdir()] == [".json"]


def test_other_data_code_or_cells_are_not_taken_for_it(tmp_path: Path) -> None:
    FinishedCells(tmp_path, data="d", code="c").save(CELL, RESULT)
    assert FinishedCells(tmp_path, data="e", code="c").load(CELL) is None
    assert FinishedCells(tmp_path, data="d", code="e").load(CELL) is None
    other = Cell(question=Question.ANOMALOUS, model="svm", split=Split.BY_RUN, held=("1",), seed=8)
    assert FinishedCells(tmp_path, data="d", code="c").load(other) is None


def test_a_damaged_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = FinishedCells(tmp_path, data="d", code="c")
    kept.save(CELL, RESULT)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(InputError, match=file.name):
        kept.load(CELL)
    monkeypatch.setattr(finished_cells, "_MAX_BYTES", 3)
    with pytest.raises(InputError, match="larger than 3 bytes"):
        kept.load(CELL)


def test_disks_that_refuse(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(StoreError, match="cannot make"):
        FinishedCells(blocked / "below", data="d", code="c")
    kept = FinishedCells(tmp_path / "work", data="d", code="c")
    kept.save(CELL, RESULT)
    (file,) = (tmp_path / "work").iterdir()
    file.unlink()
    file.mkdir()
    with pytest.raises(StoreError, match="cannot read"):
        kept.load(CELL)
    with pytest.raises(StoreError, match="cannot write"):
        kept.save(CELL, RESULT)
    assert [p.name for p in (tmp_path / "work").iterdir()] == [file.name]
