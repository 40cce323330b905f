"""Recorded telemetry: which folder, and for the demo a model that has not seen the run that is replayed."""

from __future__ import annotations

from pathlib import Path

from natwork_ray.adapters.ianomaly import labelled_runs, read_recordings
from natwork_ray.adapters.replay import ReplayTelemetry
from natwork_ray.cli.output import progress_bar, talk
from natwork_ray.cli.settings import settle, whole
from natwork_ray.config import Config
from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.errors import PreconditionError, UsageError


def folder_of(telemetry: str) -> Path | None:
    """The folder in `replay:FOLDER`, or None for `emulated`.

    Raises:
        UsageError: neither.
        PreconditionError: no such folder.
    """
    if telemetry == "emulated":
        return None
    word, colon, path = telemetry.partition(":")
    if word != "replay" or not colon or not path:
        raise UsageError(f"--telemetry {telemetry}", hint="write 'emulated' or 'replay:FOLDER'")
    folder = whole(Path(path))
    if not folder.is_dir():
        raise PreconditionError(f"{folder} is no folder", hint="docs/data.md says where recordings are published")
    return folder


def train_on_other_runs(config: Config, place: Path) -> Config:
    """Train the profiler on every run but the one that is replayed, and name the model in the configuration.

    With a single run there is nothing else to train on: the shipped model, which knows the emulation only, stays.
    """
    folder = config.replay.folder
    assert folder is not None  # noqa: S101 - the caller has checked
    recordings = read_recordings(folder)
    run = ReplayTelemetry(recordings, run=config.replay.run).run
    others = tuple(r for r in labelled_runs(recordings) if r.run != run)
    if not any(r.anomalous.any() for r in others):
        talk.print("Only one labelled run: judged by the shipped model, which was trained on the emulation.")
        return config
    names = sorted({r.run for r in others})
    with progress_bar() as bar:
        task = bar.add_task(f"training on runs {', '.join(names)} (run {run} is kept unseen)", total=None)

        def step(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what)

        from natwork_ray.profiling.training import train_profiler

        model = train_profiler(others, progress=step)
    path = place / f"runs-{'-'.join(names)}.safetensors"
    path.write_bytes(model)
    talk.print(f"Profiler trained on runs {', '.join(names)}; run {run} was not seen. Model: {path}", soft_wrap=True)
    return config.model_copy(update={"model": path, "replay": config.replay.model_copy(update={"run": run})})


def recordings_in(data: Path | None) -> tuple[LabelledRun, ...]:
    """Labelled recordings of a folder, or of the configured data folder.

    Raises:
        PreconditionError: no folder is named, or it holds no normal recording.
        InputError: a recording that breaks the format.
    """
    if data is None:
        data_dir = settle().data_dir
        if data_dir is None:
            raise PreconditionError("no recordings", hint="name the folder with --data, or set NATWORK_DATA_DIR")
        data = data_dir / "ianomaly"
    labelled = labelled_runs(read_recordings(data))
    if not any(run.commissioning for run in labelled):
        raise PreconditionError(f"{data} holds no normal recording", hint="profiles are learnt from normal_data/")
    return labelled
