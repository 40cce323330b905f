"""Numbers from CSV: the fast way and the careful way read the same, and bounds hold."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from natwork_ray.adapters import number_table
from natwork_ray.adapters.number_table import read_numbers
from natwork_ray.errors import InputError


def _read(path: Path, text: str | bytes, *, missing: bool = False, rows: int = 100, **kwargs: object) -> np.ndarray:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_numbers(
        path,
        ("a", "b"),
        missing_allowed=missing,
        max_rows=rows,
        max_bytes=10_000_000,
        **kwargs,  # type: ignore[arg-type]
    ).values


def test_columns_come_in_the_order_that_was_asked_for(tmp_path: Path) -> None:
    assert _read(tmp_path / "x.csv", "b,a\n1,2\n3,4e1\n").tolist() == [[2, 1], [40, 3]]
    table = read_numbers(tmp_path / "x.csv", ("b",), optional=("c", "a"), max_rows=9, max_bytes=99)
    assert (table.columns, table.values.tolist()) == (("b", "a"), [[1, 2], [3, 40]])


@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_line_ends(tmp_path: Path, end: str) -> None:
    newline = "\r\n" if end == "\r\n" else "\n"
    assert _read(tmp_path / "x.csv", f"a,b{newline}1,2{newline}3,4{end}").tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("cell", ["", "nan", "NaN", "NA", "null", "None", " "])
def test_missing_cells_only_where_they_are_allowed(tmp_path: Path, cell: str) -> None:
    for text in (f"a,b\n{cell},2\n3,4\n", f"a,b\n1,{cell}\n3,4\n", f"a,b\n1,2\n3,{cell}"):
        values = _read(tmp_path / "x.csv", text, missing=True)
        assert np.isnan(values).sum() == 1
        with pytest.raises(InputError, match="is not a number"):
            _read(tmp_path / "x.csv", text)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("1", "row 3: 1 cells instead of 2"),
        ("", "row 3: 0 cells instead of 2"),
        ("1,2,3", "row 3: 3 cells"),
        ("1,two", "row 3, column b: 'two' is not a number"),
        ("1,inf", "'inf' is not a number"),
        ("1,1e999", "out of range"),
        ("1,-2", "'-2' is out of range"),
        ("1,0x2", "is not a number"),
        ("1,1_0", "is not a number"),
        ("1,--2", "is not a number"),
        ("1,.", "is not a number"),
        ("1,1 2", "is not a number"),
        ("1," + "0" * 80, "is not a number"),
        ('1,"2', "unexpected end of data"),
    ],
)
def test_odd_rows_are_named(tmp_path: Path, row: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        _read(tmp_path / "x.csv", f"a,b\n1,2\n3,4\n{row}\n5,6\n", missing=True)
    assert said in str(caught.value)


def test_rows_are_counted_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(number_table, "_BLOCK_BYTES", 7)
    text = "a,b\n" + "".join(f"{i},{i}\n" for i in range(40))
    assert _read(tmp_path / "x.csv", text)[:, 0].tolist() == list(range(40))
    with pytest.raises(InputError, match="row 31, column b"):
        _read(tmp_path / "x.csv", text.replace("30,30", "30,x"))
    with pytest.raises(InputError, match="more than 39 rows"):
        _read(tmp_path / "x.csv", text, rows=39)
    with pytest.raises(InputError, match="more than 39 rows"):
        _read(tmp_path / "x.csv", text.replace("39,39", '"39",39'), rows=39)


def test_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.csv"
    with pytest.raises(InputError, match="no rows"):
        _read(path, "a,b\n")
    with pytest.raises(InputError, match="columns missing"):
        _read(path, "")
    path.write_bytes(b"a,b\n1,2\n")
    with pytest.raises(InputError, match="bytes"):
        read_numbers(path, ("a",), max_rows=9, max_bytes=3)
    monkeypatch.setattr(number_table, "_LINE_BYTES", 64)
    monkeypatch.setattr(number_table, "_BLOCK_BYTES", 8)
    with pytest.raises(InputError, match="a line of more than 64 bytes"):
        _read(path, "a,b\n" + "1" * 100)
    with pytest.raises(InputError, match="a line of more than 64 bytes"):
        _read(path, "a" * 100)


_CELLS = st.one_of(
    st.floats(0, 1e30).map(repr),
    st.sampled_from(["", "nan", "-1", "1e", "+2", " 3 ", "4.", ".5", "1e-3", "x", "1,2", "\r", '"7"', "-0", "1E5"]),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(_CELLS, _CELLS), min_size=1, max_size=5), st.booleans())
def test_both_ways_say_the_same(tmp_path: Path, rows: list[tuple[str, str]], missing: bool) -> None:
    text = "a,b\n" + "".join(f"{a},{b}\n" for a, b in rows)

    def outcome() -> object:
        try:
            return _read(tmp_path / "x.csv", text, missing=missing).tolist()
        except InputError as error:
            return error.what

    fast = outcome()
    plain = number_table._PLAIN
    try:
        number_table._PLAIN = b""  # nothing is plain: everything goes cell by cell
        careful = outcome()
    finally:
        number_table._PLAIN = plain
    if isinstance(fast, list):
        assert isinstance(careful, list)
        for one, other in zip(np.ravel(fast), np.ravel(careful), strict=True):
            assert one == other or (math.isnan(one) and math.isnan(other))
    else:
        assert fast == careful


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "device.csv").symlink_to("/dev/zero")
    (tmp_path / "folder.csv").mkdir()
    for name in ("pipe.csv", "device.csv", "folder.csv"):
        with pytest.raises(InputError, match=rf"{name}: not a regular file"):
            read_numbers(tmp_path / name, ("a",), max_rows=9, max_bytes=99)


def test_a_byte_order_mark_is_skipped_at_the_start_only(tmp_path: Path) -> None:
    assert _read(tmp_path / "x.csv", "\ufeffa,b\n1,2\n").tolist() == [[1, 2]]
    with pytest.raises(InputError, match="row 1, column a"):
        _read(tmp_path / "x.csv", "a,b\n\ufeff1,2\n")
