"""Rows, documents, files that are written whole, and text from outside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natwork_ray.cli.output import Format, printable, write_json, write_rows, written_whole


@given(st.text())
def test_printable_text_cannot_steer_a_terminal(text: str) -> None:
    shown = printable(text)
    assert shown.replace("\n", "").isprintable()
    assert printable(shown) == shown


@pytest.mark.parametrize("text", ["", "plain", "Straße 漢字 é", "[red]x[/red]", "two\nlines"])
def test_printable_leaves_ordinary_text_alone(text: str) -> None:
    assert printable(text) == text


ROWS = [{"name": "[bold]a[/bold]", "x": 1.23456, "many": ("b", 2), "none": None}, {"name": "e\x1b[2J\u202eb", "x": 3}]


def test_a_table_shows_markup_and_controls_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(ROWS, ("name", "x", "many", "none"), Format.TABLE, title="[red]rows")
    out = capsys.readouterr().out
    assert "[bold]a[/bold]" in out
    assert "e\\x1b[2J\\u202eb" in out
    assert "[red]rows (2)" in out
    assert "1.235" in out
    assert "b, 2" in out
    assert "\x1b" not in out


def test_csv_and_json_keep_the_text_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(ROWS, ("name", "none"), Format.CSV, title="rows")
    assert capsys.readouterr().out == "name,none\n[bold]a[/bold],\ne\x1b[2J\u202eb,\n"
    write_rows(ROWS, ("name",), Format.JSON, title="rows")
    assert json.loads(capsys.readouterr().out)["rows"][1] == ROWS[1]


def test_nan_is_no_json(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        write_json({"x": float("nan")})
    assert capsys.readouterr().out == ""


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with written_whole(path) as stream:
        stream.write(b"new")
    assert path.read_bytes() == b"new"
    with pytest.raises(TypeError), written_whole(path) as stream:
        stream.writelines([b"half", "no bytes"])  # type: ignore[list-item]
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]
