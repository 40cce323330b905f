"""`natwork train profiler` and `natwork reproduce table-2`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from natwork_ray.adapters.ianomaly import labelled_runs as recorded_runs
from natwork_ray.adapters.ianomaly import read_recordings
from natwork_ray.cli.output import (
    Format,
    FormatOption,
    JsonOption,
    chosen,
    progress_bar,
    require_room,
    talk,
    write_json,
    write_rows,
    written_whole,
)
from natwork_ray.cli.settings import settle
from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.domain.values import plain
from natwork_ray.emulation.training_set import labelled_runs as emulated_runs
from natwork_ray.errors import PreconditionError
from natwork_ray.profiling.bounds import DEFAULT_MODEL, TABLE_2_EPOCHS, TABLE_2_FOLDS
from natwork_ray.profiling.model_card import TrainingSettings

train_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Train the models.")
reproduce_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Our numbers beside the published ones.")

# What the shipped model was trained on; docs/profiling.md tells why these.
SHIPPED_DATA_SEED = 11
SHIPPED_RUNS = 8
SHIPPED_HOURS = 3.0


def training_data(folder: Path | None, *, seed: int, runs: int, hours: float) -> tuple[LabelledRun, ...]:
    """Recordings of a folder in iAnomaly's format, or emulated runs without one."""
    if folder is not None:
        return recorded_runs(read_recordings(folder))
    return emulated_runs(seed=seed, runs=runs, hours=hours)


@train_app.command(
    epilog="Examples:\n\nnatwork train profiler --out model.safetensors\n\n"
    "natwork train profiler --data FOLDER --out model.safetensors   (recordings in iAnomaly's format)\n\n"
    "natwork --set model=model.safetensors demo   (use it)"
)
def profiler(
    out: Annotated[Path, typer.Option(help="File to write.")] = Path(f"{DEFAULT_MODEL}.safetensors"),
    data: Annotated[Path | None, typer.Option(help="Recordings in iAnomaly's format; emulated runs without.")] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of initial weights and batch order.")
    ] = TrainingSettings().seed,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs per network.")] = TrainingSettings().epochs,
    window: Annotated[int, typer.Option(min=4, help="Samples per window.")] = TrainingSettings().window,
    data_seed: Annotated[int, typer.Option(min=0, help="Seed of the emulated runs.")] = SHIPPED_DATA_SEED,
    runs: Annotated[int, typer.Option(min=2, help="Number of emulated runs.")] = SHIPPED_RUNS,
    hours: Annotated[float, typer.Option(min=1.1, help="Length of each emulated run.")] = SHIPPED_HOURS,
    force: Annotated[bool, typer.Option("--force", help="Replace the file when it is there.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train both stages of the profiler (D3.3 Annex A). The defaults rebuild the shipped model."""
    require_room(out, force=force)
    from natwork_ray.profiling.model_file import digest, loads
    from natwork_ray.profiling.training import train_profiler

    settings = replace(TrainingSettings(), seed=seed, epochs=epochs, window=window)
    talk.print("Collecting labelled runs ...")
    labelled = training_data(data, seed=data_seed, runs=runs, hours=hours)
    with progress_bar(quiet=as_json) as bar:
        model = train_profiler(labelled, settings, shown_on(bar))
    with written_whole(out) as stream:
        stream.write(model)
    card = loads(model).card
    result = {"file": str(out), "sha256": digest(model), "bytes": len(model), "card": plain(card)}
    if as_json:
        write_json(result)
    else:
        talk.print(f"{out}: {len(model)} bytes, sha256 {digest(model)}", soft_wrap=True)
        talk.print(f"out-of-fold, split by run: {plain(card.out_of_fold)}", soft_wrap=True)


@reproduce_app.command(
    "table-2",
    epilog="Example:\n\nnatwork reproduce table-2 --data FOLDER --json",
)
def reproduce_table_2(
    data: Annotated[
        Path | None, typer.Option(help="Recordings in iAnomaly's format (default: data_dir/ianomaly).")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 7,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs per network.")] = TABLE_2_EPOCHS,
    folds: Annotated[int, typer.Option(min=2, help="Run groups at most.")] = TABLE_2_FOLDS,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """D3.3 Table 2: train Annex A's light CNN split by run, and print it beside the published rows."""
    output = chosen(output, as_json)
    if data is None:
        data_dir = settle().data_dir
        if data_dir is None:
            raise PreconditionError("no recordings", hint="name the folder with --data, or set NATWORK_DATA_DIR")
        data = data_dir / "ianomaly"
    labelled = recorded_runs(read_recordings(data))
    if not any(run.commissioning for run in labelled):
        raise PreconditionError(f"{data} holds no normal recording", hint="profiles are learnt from normal_data/")
    with progress_bar(quiet=output is Format.JSON) as bar:
        from natwork_ray.profiling.reproduce import table_2

        table = table_2(labelled, seed=seed, epochs=epochs, folds=folds, progress=shown_on(bar))
    document = plain(table)
    if output is Format.JSON:
        write_json(document)
        return
    columns = ("source", "model", "split", "accuracy", "precision", "recall", "f1", "auc", "f1_ci")
    rows = [{"source": "measured", **row} for row in document["rows"]]
    rows += [{"source": "published", **row} for row in document["published"]]
    write_rows(rows, columns, output, title="table 2")


def shown_on(bar: Any) -> Callable[[int, int, str], None]:
    """Progress of a training as one task of a progress bar."""
    task = bar.add_task("training", total=None)

    def step(done: int, total: int, what: str) -> None:
        bar.update(task, completed=done, total=total, description=what)

    return step
