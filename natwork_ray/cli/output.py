"""Data to stdout, talk to stderr; every listing also as JSON and CSV."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table


class Format(StrEnum):
    """How a result is written to stdout."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


FormatOption = Annotated[Format, typer.Option("-o", "--output", help="Format of the result on stdout.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout and nothing else (-o json).")]

talk = Console(stderr=True, highlight=False)


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
    else:
        table = Table(*columns, title=f"{title} ({len(rows)})", title_justify="left")
        for row in rows:
            table.add_row(*(_cell(row.get(column)) for column in columns))
        Console(highlight=False).print(table)


def progress_bar(*, quiet: bool = False) -> Progress:
    """A progress bar on stderr that leaves nothing behind."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
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
        return f"{item:.4g}"
    if isinstance(item, list | tuple):
        return ", ".join(_cell(part) for part in item)
    return str(item)
