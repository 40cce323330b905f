"""Data to stdout, talk to stderr; every listing also as JSON and CSV."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from natwork_ray.errors import PreconditionError, UsageError


class Format(StrEnum):
    """How a result is written to stdout."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


FormatOption = Annotated[Format, typer.Option("-o", "--output", help="Format of the result on stdout.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout and nothing else (-o json).")]

# Without markup: names and messages come from outside, and [red] in one of them is text.
talk = Console(stderr=True, highlight=False, markup=False)


def chosen(output: Format, as_json: bool) -> Format:
    """`--json` wins over `-o`."""
    return Format.JSON if as_json else output


def write_json(document: Any) -> None:
    """One JSON document on stdout. NaN is refused: it is not JSON."""
    sys.stdout.write(json.dumps(document, allow_nan=False) + "\n")
    sys.stdout.flush()


def write_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], output: Format, *, title: str) -> None:
    """Rows in the format that was asked for. JSON holds every key of the rows, the others the named columns."""
    if output is Format.JSON:
        write_json({title: list(rows)})
    elif output is Format.CSV:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)
        sys.stdout.flush()  # here a closed pipe is still an ordinary error
    else:
        # Folded, not cut: a key that ends in dots is of no use to the next command.
        table = Table(title=Text(f"{title} ({len(rows)})"), title_justify="left")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(Text(printable(_cell(row.get(column)))) for column in columns))
        Console(highlight=False).print(table)


def require_room(file: Path, *, force: bool) -> None:
    """Refuse early what would only fail after the work is done.

    Raises:
        UsageError: `file` is a folder.
        PreconditionError: it exists and `force` is false, or its folder does not exist.
    """
    if file.is_dir():
        raise UsageError(f"{file} is a folder", hint="name a file in it")
    if file.exists() and not force:
        raise PreconditionError(f"{file} exists", hint="name another file, or add --force")
    if not file.absolute().parent.is_dir():
        raise PreconditionError(f"there is no folder {file.absolute().parent}", hint="make it first")


@contextmanager
def written_whole(file: Path) -> Iterator[BinaryIO]:
    """A stream whose bytes take the file's place at the end, and only when nothing went wrong."""
    part = file.with_name(f".{file.name}.part")
    try:
        with part.open("wb") as stream:
            yield stream
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def printable(text: str) -> str:
    """The text with control and formatting characters spelled out, so that no name can steer a terminal."""
    return "".join(c if c == "\n" or c.isprintable() else repr(c)[1:-1] for c in text)


def progress_bar(*, quiet: bool = False) -> Progress:
    """A progress bar on stderr that leaves nothing behind."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=talk,
        transient=True,
        disable=quiet,
    )


def _cell(item: Any) -> str:
    if item is None:
        return ""
    if isinstance(item, float):
        return f"{item:.4g}" if abs(item) < 1e4 else f"{item:.0f}"  # a moment in time keeps its seconds
    if isinstance(item, list | tuple):
        return ", ".join(_cell(part) for part in item)
    return str(item)
