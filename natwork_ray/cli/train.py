"""`natwork train profiler`; the groups `natwork train` and `natwork reproduce` begin here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from natwork_ray.adapters.ianomaly import labelled_runs as recorded_runs
from natwork_ray.adapters.ianomaly import read_recordings
from natwork_ray.cli.computing import ResumeOption, SeedsOption, WorkersOption, compute
from natwork_ray.cli.output import (
    JsonOption,
    progress_bar,
    require_room,
    talk,
    write_json,
    written_whole,
)
from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.domain.values import plain
from natwork_ray.emulation.training_set import labelled_runs as emulated_runs
from natwork_ray.errors import UsageError
from natwork_ray.profiling.bounds import DEFAULT_MODEL
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
    "natwork train profiler --data FOLDER --out m.safetensors --evaluate --seeds 3 --workers 2 --resume WORK\n\n"
    "natwork detect --model model.safetensors --data OTHER   (use it)"
)
def profiler(
    out: Annotated[Path, typer.Option(help="File to write.")] = Path(f"{DEFAULT_MODEL}.safetensors"),
    data: Annotated[Path | None, typer.Option(help="Recordings in iAnomaly's format; emulated runs without.")] = None,
    detector: Annotated[
        Literal["best", "annex-a"], typer.Option(help="The default detector, or Annex A's networks alone.")
    ] = TrainingSettings().detector,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random in training.")] = TrainingSettings().seed,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs per network.", show_default=str(TrainingSettings().epochs))
    ] = None,
    window: Annotated[
        int | None, typer.Option(min=4, help="Samples per window.", show_default=str(TrainingSettings().window))
    ] = None,
    data_seed: Annotated[int, typer.Option(min=0, help="Seed of the emulated runs.")] = SHIPPED_DATA_SEED,
    runs: Annotated[int, typer.Option(min=2, help="Number of emulated runs.")] = SHIPPED_RUNS,
    hours: Annotated[float, typer.Option(min=1.1, help="Length of each emulated run.")] = SHIPPED_HOURS,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Also train without each run in turn, and tell how well it does there.")
    ] = False,
    seeds: SeedsOption = 1,
    workers: WorkersOption = 0,
    resume: ResumeOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file when it is there.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train both stages of the profiler (D3.3 section 6.1). The defaults rebuild the shipped model."""
    require_room(out, force=force)
    if not evaluate and (seeds, workers, resume) != (1, 0, None):
        raise UsageError("--seeds, --workers and --resume without --evaluate", hint="they are about the evaluation")
    from natwork_ray.profiling.model_file import digest, loads
    from natwork_ray.profiling.training import train_profiler

    settings = settings_of(detector, seed=seed, epochs=epochs, window=window)
    talk.print("Collecting labelled runs ...")
    labelled = training_data(data, seed=data_seed, runs=runs, hours=hours)
    # First, so that a run that was killed has not written a model that a second one would refuse to replace.
    evaluation = (
        evaluated(labelled, settings, seeds=seeds, workers=workers, resume=resume, quiet=as_json) if evaluate else None
    )
    with progress_bar(quiet=as_json) as bar:
        model = train_profiler(labelled, settings, shown_on(bar))
    with written_whole(out) as stream:
        stream.write(model)
    card = loads(model).card
    result = {"file": str(out), "sha256": digest(model), "bytes": len(model), "card": plain(card)}
    if evaluation is not None:
        result["by_run"] = evaluation
    if as_json:
        write_json(result)
        return
    talk.print(f"{out}: {len(model)} bytes, sha256 {digest(model)}", soft_wrap=True)
    talk.print(f"out-of-fold, split by run: {plain(card.out_of_fold)}", soft_wrap=True)
    if evaluation is not None:
        talk.print(f"trained without each run in turn, judged on it: {evaluation['row']}", soft_wrap=True)


def settings_of(
    detector: Literal["best", "annex-a"], *, seed: int, epochs: int | None, window: int | None
) -> TrainingSettings:
    """Settings with what was asked for; the rest as the detector has it.

    Raises:
        InputError: a figure out of range.
    """
    settings = TrainingSettings(detector=detector, seed=seed)
    return replace(
        settings,
        epochs=settings.epochs if epochs is None else epochs,
        window=settings.window if window is None else window,
    )


def evaluated(
    runs: Sequence[LabelledRun],
    settings: TrainingSettings,
    *,
    seeds: int,
    workers: int,
    resume: Path | None,
    quiet: bool,
) -> dict[str, Any]:
    """How well this training does on runs that it did not see: one row as in Table 2, and what it took.

    Raises:
        InputError: fewer than three run names: one to hold out, and two to choose on.
    """
    from natwork_ray.profiling.reproduction import training_check

    cells = training_check.cells(runs, settings, seeds=seeds)
    results, work = compute(runs, cells, workers=workers, resume=resume, quiet=quiet)
    return {"row": plain(training_check.row(runs, results)), "work": work}


def shown_on(bar: Any) -> Callable[[int, int, str], None]:
    """Progress of a training as one task of a progress bar."""
    task = bar.add_task("training", total=None)

    def step(done: int, total: int, what: str) -> None:
        bar.update(task, completed=done, total=total, description=what)

    return step
