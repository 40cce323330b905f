"""`natwork reproduce table-2|table-3|unknown|unseen-service|events`: our figures beside the published ones.

All five are the same work: cells (one model, trained once, scoring what it never saw) are computed, kept, and put
together (docs/reproduce.md). With `--workers` they are spread over Ray; with `--resume` a run that was killed goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import typer

from natwork_ray.cli.computing import ResumeOption, SeedsOption, WorkersOption, compute
from natwork_ray.cli.output import Format, FormatOption, JsonOption, chosen, talk, write_json, write_rows
from natwork_ray.cli.recordings import recordings_in
from natwork_ray.cli.train import reproduce_app as reproduce_app
from natwork_ray.domain.values import plain
from natwork_ray.profiling.bounds import MAX_FOLDS

Detector = Literal["best", "annex-a"]

DataOption = Annotated[Path | None, typer.Option(help="Recordings in iAnomaly's format (default: data_dir/ianomaly).")]
DetectorOption = Annotated[Detector, typer.Option(help="The detector that heads the table.")]
ModelsOption = Annotated[
    str | None, typer.Option(help="Models to compare, separated by commas; docs/reproduce.md lists them.")
]
FoldsOption = Annotated[int, typer.Option(min=2, help="Groups of run numbers at most.")]
SeedOption = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="First seed of everything random.")]
QuickOption = Annotated[bool, typer.Option("--quick", help="Small models: shows that it works, not how well.")]

_COLUMNS = ("source", "model", "split", "accuracy", "precision", "recall", "f1", "f1_ci", "auc")


@reproduce_app.command("table-2", epilog="Example:\n\nnatwork reproduce table-2 --data FOLDER --json")
def table_2(
    data: DataOption = None,
    detector: DetectorOption = "best",
    models: ModelsOption = None,
    folds: FoldsOption = MAX_FOLDS,
    seed: SeedOption = 7,
    seeds: SeedsOption = 1,
    workers: WorkersOption = 0,
    resume: ResumeOption = None,
    quick: QuickOption = False,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """D3.3 Table 2: normal or anomalous, split by run; the default detector, Annex A's CNN and their peers."""
    _reproduce("table_2", locals(), _COLUMNS)


@reproduce_app.command("table-3", epilog="Example:\n\nnatwork reproduce table-3 --data FOLDER --seeds 3 --workers 2")
def table_3(
    data: DataOption = None,
    detector: DetectorOption = "best",
    models: ModelsOption = None,
    folds: FoldsOption = MAX_FOLDS,
    seed: SeedOption = 7,
    seeds: SeedsOption = 1,
    workers: WorkersOption = 0,
    resume: ResumeOption = None,
    quick: QuickOption = False,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """D3.3 Table 3: which anomaly is it, on the declared mix, split by run."""
    _reproduce("table_3", locals(), ("source", "model", "split", "accuracy", "precision", "recall", "f1", "f1_ci",
                                     "macro_f1", "macro_f1_ci"))  # fmt: skip


@reproduce_app.command("unseen-service", epilog="Example:\n\nnatwork reproduce unseen-service --data FOLDER --json")
def unseen_service(
    data: DataOption = None,
    detector: DetectorOption = "best",
    models: ModelsOption = None,
    seed: SeedOption = 7,
    seeds: SeedsOption = 1,
    workers: WorkersOption = 0,
    resume: ResumeOption = None,
    quick: QuickOption = False,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """A service that no model was trained on, profiled from its first normal hour."""
    _reproduce("unseen_service", {**locals(), "folds": MAX_FOLDS}, _COLUMNS)


@reproduce_app.command("events", epilog="Example:\n\nnatwork reproduce events --data FOLDER --json")
def events(
    data: DataOption = None,
    detector: DetectorOption = "best",
    models: ModelsOption = None,
    folds: FoldsOption = MAX_FOLDS,
    seed: SeedOption = 7,
    seeds: SeedsOption = 1,
    workers: WorkersOption = 0,
    resume: ResumeOption = None,
    quick: QuickOption = False,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """What an operator sees: anomalies found, how late, and how many alarms for nothing."""
    _reproduce("events", locals(), ("model", "split", "events", "found", "mean_delay", "false_alarms_per_hour",
                                    "false_alarms_per_hour_grace_0", "precision", "recall", "f1"))  # fmt: skip


@reproduce_app.command("unknown", epilog="Example:\n\nnatwork reproduce unknown --data FOLDER --json")
def unknown(
    data: DataOption = None,
    detector: DetectorOption = "best",
    models: ModelsOption = None,
    folds: FoldsOption = MAX_FOLDS,
    seed: SeedOption = 7,
    seeds: SeedsOption = 1,
    workers: WorkersOption = 0,
    resume: ResumeOption = None,
    quick: QuickOption = False,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """One type of anomaly is never shown in training: is it flagged, and called Unknown?"""
    _reproduce("unknown", locals(), ("model", "held_out", "flagged", "named_unknown", "normal_flagged",
                                     "known_called_unknown"))  # fmt: skip


def _reproduce(name: str, given: dict[str, Any], columns: Sequence[str]) -> None:
    output = chosen(given["output"], given["as_json"])
    runs = recordings_in(given["data"])
    # Torch and LightGBM take seconds to import: not before the recordings have proved readable.
    from natwork_ray.profiling.reproduction.tables import Demand

    table = _table(name)
    models = table.MODELS if given["detector"] == "best" else tuple(m for m in table.MODELS if m != "best")
    if given["models"] is not None:
        models = tuple(part.strip() for part in given["models"].split(",") if part.strip())
    seed: int = given["seed"]
    demand = Demand(
        models=models, seeds=tuple(range(seed, seed + given["seeds"])), folds=given["folds"], quick=given["quick"]
    )
    cells = table.cells(runs, demand)
    results, work = compute(runs, cells, workers=given["workers"], resume=given["resume"], quiet=output is Format.JSON)
    document = plain(table.table(runs, demand, results)) | {"work": work}
    if output is Format.JSON:
        write_json(document)
        return
    rows = [{"source": "measured", **row} for row in document["rows"]]
    rows += [{"source": "published", **row} for row in document["published"]]
    if given["quick"]:
        talk.print("--quick: small models; these figures say that it works, not how well.")
    write_rows(rows, columns, output, title=name.replace("_", "-"))


def _table(name: str) -> ModuleType:
    import importlib

    return importlib.import_module(f"natwork_ray.profiling.reproduction.{name}")
