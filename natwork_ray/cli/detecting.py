"""`natwork detect`: verdicts on recordings that the model never saw, or on a live Prometheus server."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from natwork_ray.adapters.ianomaly import RecordedFile, UnreadableFile, recorded_files
from natwork_ray.adapters.model_directory import ModelDirectory
from natwork_ray.cli.output import Format, JsonOption, progress_bar, require_room, talk, write_rows, written_whole
from natwork_ray.cli.settings import settle
from natwork_ray.cli.train import shown_on
from natwork_ray.domain.values import plain
from natwork_ray.errors import InputError, PreconditionError, UsageError
from natwork_ray.profiling.bounds import ANNEX_A_MODEL, DEFAULT_MODEL, MAX_MODEL_BYTES

# Verdicts are kept in memory, some 150 bytes a row.
MAX_ROWS_IN_ALL = 5_000_000
_SPARKS = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH = 20

EXAMPLES = (
    "Examples:\n\nnatwork detect --data FOLDER   (the shipped model adapts to each service's first normal hour)\n\n"
    "natwork train profiler --data FOLDER --out m.safetensors\n\n"
    "natwork detect --model m.safetensors --data OTHER --json\n\n"
    "natwork detect --prometheus http://127.0.0.1:9090 --commissioning 10m"
)


def detect(
    data: Annotated[Path | None, typer.Option(help="Recordings in iAnomaly's format.")] = None,
    model: Annotated[
        Path | None, typer.Option(help="Model of `natwork train profiler`; the shipped one without.")
    ] = None,
    detector: Annotated[
        Literal["best", "annex-a"] | None, typer.Option(help="Which shipped model: best (default) or annex-a.")
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Judge the readable files and list the others, instead of refusing all.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Write the JSON document to this file too.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file when it is there.")] = False,
    prometheus: Annotated[str | None, typer.Option(help="Watch this Prometheus server instead of recordings.")] = None,
    commissioning: Annotated[
        str | None, typer.Option(help="With --prometheus: normal time to learn profiles from, such as 1h or 90s.")
    ] = None,
    step: Annotated[str | None, typer.Option(help="With --prometheus: time between samples.")] = None,
    scrape_interval: Annotated[
        str | None, typer.Option(help="With --prometheus: how often the server scrapes.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="With --prometheus: one verdict of each container.")] = False,
    duration: Annotated[str | None, typer.Option("--for", help="With --prometheus: stop after this time.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Which moments are anomalous, what kind they are, and which metrics say so."""
    if (data is None) == (prometheus is None):
        raise UsageError("what is to be judged?", hint="give --data FOLDER or --prometheus URL, one of the two")
    if model is not None and detector is not None:
        raise UsageError("--model and --detector together", hint="a model file is of one detector")
    live = (("--commissioning", commissioning), ("--step", step), ("--scrape-interval", scrape_interval),
            ("--once", once or None), ("--for", duration))  # fmt: skip
    if prometheus is None and any(given is not None for _, given in live):
        raise UsageError(
            f"{next(name for name, given in live if given is not None)} without --prometheus",
            hint="it is about a live server",
        )
    if out is not None:
        require_room(out, force=force)
    if data is None:
        if out is not None or skip_bad:
            raise UsageError("--out and --skip-bad are about recordings", hint="redirect the output instead")
        assert prometheus is not None  # noqa: S101 - one of the two was given
        loaded, described = load_detector(model, detector or "best")
        _watch(loaded, described["file"], prometheus, commissioning, step, scrape_interval, once, duration, as_json)
        return
    files = read_files(data, skip_bad=skip_bad)
    loaded, described = load_detector(model, detector or "best")
    with progress_bar(quiet=as_json) as bar:
        document = judge(loaded, files, own_profiles=model is not None, bar=bar)
    document = {"model": described | {"seen_in_training": seen_in_training(loaded, files)}, **document}
    if out is not None:
        with written_whole(out) as stream:
            for text in _as_json(document):
                stream.write(text.encode())
    if as_json:
        for text in _as_json(document):
            sys.stdout.write(text)
        sys.stdout.flush()
        return
    _show(document)


def _watch(
    detector: Any,
    name: str,
    url: str,
    commissioning: str | None,
    step: str | None,
    scrape_interval: str | None,
    once: bool,
    duration: str | None,
    as_json: bool,
) -> None:
    from natwork_ray.cli.watching import seconds_of, watch
    from natwork_ray.cli.watching_view import WatchOptions

    def seconds(text: str | None, option: str) -> float | None:
        return None if text is None else seconds_of(text, option)

    config = settle(
        prometheus__url=url,
        loop__step_s=seconds(step, "--step"),
        prometheus__scrape_interval_s=seconds(scrape_interval, "--scrape-interval"),
    )
    learning = seconds(commissioning, "--commissioning")
    options = WatchOptions(
        commissioning_s=config.loop.commissioning_s if learning is None else learning,
        once=once,
        for_s=seconds(duration, "--for"),
        as_json=as_json,
    )
    watch(config, detector, options, model=name)


def read_files(folder: Path, *, skip_bad: bool) -> tuple[RecordedFile | UnreadableFile, ...]:
    """All files of a folder.

    Raises:
        InputError: a file breaks its format and `skip_bad` is false, or all do, or there are too many rows.
    """
    files: list[RecordedFile | UnreadableFile] = []
    rows = 0
    for file in recorded_files(folder):
        files.append(file)
        if isinstance(file, RecordedFile):
            rows += len(file.labelled.kinds)
            if rows > MAX_ROWS_IN_ALL:
                raise InputError(
                    f"{folder} holds more than {MAX_ROWS_IN_ALL} rows", hint="judge a part of the files at a time"
                )
    bad = [file for file in files if isinstance(file, UnreadableFile)]
    if bad and (not skip_bad or len(bad) == len(files)):
        others = f"; and {len(bad) - 1} more files: {', '.join(f.name for f in bad[1:5])}" if len(bad) > 1 else ""
        hint = bad[0].error.hint if skip_bad else f"{bad[0].error.hint}; --skip-bad judges the other files"
        raise InputError(f"{bad[0].error.what}{others}", hint=hint)
    return tuple(files)


def seen_in_training(detector: Any, files: Sequence[RecordedFile | UnreadableFile]) -> bool:
    """Whether the model was trained on exactly these recordings: then its figures say nothing. Parts go unnoticed."""
    from natwork_ray.profiling.training import data_digest

    runs = [file.labelled for file in files if isinstance(file, RecordedFile)]
    return bool(data_digest(runs) == detector.card.data_sha256)


def load_detector(model: Path | None, shipped: str) -> tuple[Any, dict[str, Any]]:
    """The detector, and what the document says of it.

    Raises:
        PreconditionError: no such file.
        InputError: it is no model.
    """
    if model is None:
        data, name = ModelDirectory().load(SHIPPED[shipped]), f"shipped: {SHIPPED[shipped]}"
    else:
        if not model.is_file():
            raise PreconditionError(f"there is no model {model}", hint="make one with `natwork train profiler`")
        if model.stat().st_size > MAX_MODEL_BYTES:
            raise InputError(f"{model} has more than {MAX_MODEL_BYTES} bytes", hint="it is no model of ours")
        data, name = model.read_bytes(), str(model)
    from natwork_ray.profiling.model_file import digest, loads

    loaded = loads(data)
    card = loaded.card
    return loaded, {
        "file": name,
        "sha256": digest(data),
        "detector": card.settings.detector,
        "trained_on": str(card.trained_on),
        "services": [profile.service for profile in loaded.book.profiles],
    }


SHIPPED = {"best": DEFAULT_MODEL, "annex-a": ANNEX_A_MODEL}


def judge(
    detector: Any, files: Sequence[RecordedFile | UnreadableFile], *, own_profiles: bool, bar: Any
) -> dict[str, Any]:
    """The document, but for `model`."""
    from natwork_ray.profiling.inspection import Recorded, figures_of, inspect

    recorded = [Recorded(f.name, f.labelled, f.has_labels) for f in files if isinstance(f, RecordedFile)]
    inspected = inspect(detector, recorded, own_profiles=own_profiles, progress=shown_on(bar))
    figures = figures_of(inspected)
    return {
        "rows": _Rows(inspected),
        "files": [_file(one) for one in inspected],
        "skipped": [
            {"file": f.name, "reason": f.error.what, "hint": f.error.hint}
            for f in files
            if isinstance(f, UnreadableFile)
        ],
        "metrics": None if figures is None else plain(figures),
    }


class _Rows:
    """The rows of the document, made as they are written: millions of them need not be in memory."""

    def __init__(self, inspected: Sequence[Any]) -> None:
        self._inspected = inspected

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for one in self._inspected:
            for row in range(len(one.judged)):
                yield {"file": one.recorded.name, **_plain_row(one.verdict(row))}


def _plain_row(verdict: Any) -> dict[str, Any]:
    # By hand: a general encoder would take most of the time for a million rows.
    return {
        "row": verdict.row,
        "score": verdict.score,
        "anomalous": verdict.anomalous,
        "alarm": verdict.alarm,
        "type": verdict.type,
        "drivers": [
            {"metric": d.metric, "deviation": round(d.deviation, 4), "contribution": round(d.contribution, 4)}
            for d in verdict.drivers
        ],
        "label": verdict.label,
        "commissioning": verdict.commissioning,
        "degraded": verdict.degraded,
    }


def _file(one: Any) -> dict[str, Any]:
    from natwork_ray.profiling.inspection import figures_of, types_found

    figures = figures_of([one])
    events = None if figures is None else figures.events
    return {
        "file": one.recorded.name,
        "service": one.recorded.run.service,
        "run": one.recorded.run.run,
        "rows": len(one.judged),
        "judged": int(one.judged.scored.sum()),
        "anomalous": int(one.judged.flagged.sum()),
        "types": types_found(one),
        "profile": str(one.profile),
        "commissioning": one.commissioning,
        "degraded": one.degraded_rows,
        "caveat": one.caveat,
        "events": None if events is None else events.events,
        "events_found": None if events is None else events.found,
        "false_alarms": None if events is None else events.false_alarms,
        "scores": _sparkline(one.judged.score, one.judged.scored),
    }


def _sparkline(score: Any, scored: Any) -> str:
    """The highest score of each part of a recording; a dot where nothing was judged."""
    import numpy as np

    parts = np.array_split(np.arange(len(score)), min(_SPARK_WIDTH, len(score)))
    return "".join(
        _SPARKS[min(len(_SPARKS) - 1, int(score[p].max() * len(_SPARKS)))] if scored[p].any() else "." for p in parts
    )


def _as_json(document: dict[str, Any]) -> Iterator[str]:
    """The document as JSON in pieces, row by row."""
    head = {key: item for key, item in document.items() if key != "rows"}
    text = json.dumps(head, allow_nan=False)
    yield text[:-1] + ', "rows": ['
    for number, row in enumerate(document["rows"]):
        yield (", " if number else "") + json.dumps(row, allow_nan=False)
    yield "]}\n"


def _show(document: dict[str, Any]) -> None:
    model = document["model"]
    talk.print(f"{model['detector']} ({model['file']}, trained on {model['trained_on']} runs)", soft_wrap=True)
    rows = [
        row
        | {
            "file": Path(row["file"]).name,
            "flagged": row["anomalous"],
            "events": "" if row["events"] is None else f"{row['events_found']}/{row['events']}",
            "false": row["false_alarms"],
        }
        for row in document["files"]
    ]
    columns = ("file", "rows", "flagged", "events", "false", "degraded", "scores")
    write_rows(rows, columns, Format.TABLE, title="files")
    kinds = sorted({kind for file in document["files"] for kind in file["types"]})
    for kind in kinds:
        talk.print(f"{kind}: {sum(file['types'].get(kind, 0) for file in document['files'])} rows", soft_wrap=True)
    for file in document["files"]:
        if file["caveat"]:
            talk.print(f"{file['file']}: {file['caveat']}", soft_wrap=True)
        if file["judged"] < file["rows"]:
            unjudged = file["rows"] - file["judged"]
            talk.print(f"{file['file']}: {unjudged} rows not judged: nothing that the profile knows was measured")
    for skipped in document["skipped"]:
        talk.print(f"skipped: {skipped['reason']}", soft_wrap=True)
    figures = document["metrics"]
    if model["seen_in_training"]:
        talk.print("The model was trained on these very recordings: the figures say nothing.")
    if figures is None:
        talk.print("No file says which rows are anomalous: no figures.")
        return
    events = figures["events"]
    told = {
        "rows": figures["rows"],
        "accuracy": figures["accuracy"],
        "precision": figures["precision"],
        "recall": figures["recall"],
        "f1": figures["f1"],
        "auc": figures["auc"],
        "events": f"{events['found']} of {events['events']}",
        "mean_delay": events["mean_delay"],
        "false_alarms_per_hour": events["false_alarms_per_hour"],
    }
    shown = {name: "-" if figure is None else figure for name, figure in told.items()}
    write_rows([shown], tuple(shown), Format.TABLE, title="figures")
