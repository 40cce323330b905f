"""`natwork train selector` and `natwork reproduce migration-models`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from natwork_ray.adapters.cubemig import read_dumps
from natwork_ray.adapters.migration_data import read_dataset
from natwork_ray.cli.migrations import DATA_SEED, collected, plan_of
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
from natwork_ray.cli.train import reproduce_app as reproduce_app
from natwork_ray.cli.train import shown_on
from natwork_ray.cli.train import train_app as train_app
from natwork_ray.domain.values import Backend, plain
from natwork_ray.emulation.collecting import expected_costs
from natwork_ray.errors import InputError
from natwork_ray.limi.collection import REPETITIONS
from natwork_ray.limi.dataset import MigrationRow
from natwork_ray.limi.dump_times import judge_dumps
from natwork_ray.limi.reproduce import (
    BY_RUN,
    CLASSES_OUT,
    HIGH_MEMORY_OUT,
    ONE_BY_ONE,
    ExpectedCosts,
    SplitReport,
    held_out,
    judge,
    rescaled,
)
from natwork_ray.limi.run_table import RunTable
from natwork_ray.limi.selection import Forecasts
from natwork_ray.limi.selector_card import DEFAULT_WEIGHT, SelectorSettings
from natwork_ray.limi.selector_file import DEFAULT_SELECTOR, digest, loads, read_selector
from natwork_ray.limi.selector_training import MIN_RUNS, train_selector

# Other runs than those that the shipped models were trained on, and than those that their settings were tried on.
REPRODUCE_SEED = 23
_FEW_RUNS = 60  # up to here each real run is held out by itself
_Step = Callable[[int, int, str], None]


@train_app.command(
    "selector",
    epilog="Examples:\n\nnatwork train selector --out selector.json   (collects the emulated data set first)\n\n"
    "natwork train selector --data migrations.csv.gz --out selector.json",
)
def selector(
    out: Annotated[Path, typer.Option(help="File to write.")] = Path(f"{DEFAULT_SELECTOR}.json"),
    data: Annotated[
        Path | None, typer.Option(help="Data set of `natwork migrations collect`; an emulated one without.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of folds and trees.")] = SelectorSettings().seed,
    data_seed: Annotated[int, typer.Option(min=0, help="Seed of the emulated data set.")] = DATA_SEED,
    runs: Annotated[int, typer.Option(min=2, help="Repetitions in the emulated data set.")] = REPETITIONS,
    force: Annotated[bool, typer.Option("--force", help="Replace the file when it is there.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train the models of time, downtime and method (D3.3 section 2.1). The defaults rebuild the shipped ones."""
    require_room(out, force=force)
    settings = replace(SelectorSettings(), seed=seed)
    with progress_bar(quiet=as_json) as bar:
        step = shown_on(bar)
        rows = _emulated(data, seed=data_seed, runs=runs, step=step) if data is None else read_dataset(data)
        model = train_selector(rows, settings, step)
    with written_whole(out) as stream:
        stream.write(model)
    card = loads(model).card
    result = {"file": str(out), "sha256": digest(model), "bytes": len(model), "card": plain(card)}
    if as_json:
        write_json(result)
        return
    talk.print(f"{out}: {len(model)} bytes, sha256 {digest(model)}", soft_wrap=True)
    for quality in card.methods:
        talk.print(
            f"{quality.method}: error of total time {quality.total_mape_pct:.1f} %, of downtime "
            f"{quality.downtime_mape_pct:.1f} % on held-out runs",
            soft_wrap=True,
        )


@reproduce_app.command(
    "migration-models",
    epilog="Examples:\n\nnatwork reproduce migration-models --json   (collects first; a minute or two)\n\n"
    "natwork reproduce migration-models --data migrations.csv.gz --real real.csv --json",
)
def reproduce_migration_models(
    data: Annotated[
        Path | None, typer.Option(help="Emulated data set of `natwork migrations collect`; collected anew without.")
    ] = None,
    real: Annotated[
        Path | None, typer.Option(help="Real data set of `natwork migrations collect --backend real`.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the emulated data set.")] = REPRODUCE_SEED,
    runs: Annotated[int, typer.Option(min=2, help="Repetitions in the emulated data set.")] = REPETITIONS,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """The migration models on held-out runs: regret, accuracy, errors; beside baselines, oracle and noise ceiling."""
    output = chosen(output, as_json)
    measured = None if real is None else _of(Backend.REAL, read_dataset(real), real)
    with progress_bar(quiet=output is Format.JSON) as bar:
        step = shown_on(bar)
        rows = _of(Backend.EMULATED, _emulated(data, seed=seed, runs=runs, step=step), data)
        step(0, 1, "expected costs")
        expected = _remembered(expected_costs(RunTable.of(rows)), RunTable.of(rows))
        reports = {}
        for split in (BY_RUN, CLASSES_OUT, HIGH_MEMORY_OUT):
            reports[split] = held_out(rows, split=split, settings=SelectorSettings(), expected=expected, progress=step)
        document = {
            "emulated": _headline(reports, rows),
            "real": _real(measured, step),
        }
    if output is Format.JSON:
        write_json(document)
        return
    _table(document, output)


def _emulated(data: Path | None, *, seed: int, runs: int, step: _Step) -> tuple[MigrationRow, ...]:
    if data is not None:
        return read_dataset(data)
    plan, _ = plan_of(Backend.EMULATED, seed=seed, runs=runs, patterns=None)
    return collected(plan, step)


def _of(backend: Backend, rows: tuple[MigrationRow, ...], file: Path | None) -> tuple[MigrationRow, ...]:
    for row in rows:
        if row.backend is not backend:
            raise InputError(f"{file}: holds {row.backend} migrations", hint=f"{backend} ones are needed here")
    return rows


def _remembered(costs: ExpectedCosts, table: RunTable) -> Callable[[RunTable], ExpectedCosts]:
    """Expected costs of any part of the table, computed once."""
    place = {run: i for i, run in enumerate(table.runs)}

    def look_up(part: RunTable) -> ExpectedCosts:
        rows = [place[run] for run in part.runs]
        return ExpectedCosts(costs.total_s[rows], costs.downtime_s[rows])

    return look_up


def _headline(reports: dict[str, SplitReport], rows: tuple[MigrationRow, ...]) -> dict[str, Any]:
    report = reports[BY_RUN]
    at = report.at(DEFAULT_WEIGHT)
    oracle = at.oracle
    return {
        "rows": len(rows),
        "runs": report.runs,
        "seeds": sorted({row.seed for row in rows}),
        "split": BY_RUN,
        "weight": DEFAULT_WEIGHT,
        "regret_pct": at.selector.regret_pct,
        "regret_ci": at.regret_ci,
        "hindsight_regret_pct": at.selector.hindsight_regret_pct,
        "hindsight_regret_of_oracle_pct": oracle.hindsight_regret_pct if oracle else None,
        "balanced_accuracy": at.selector.balanced_accuracy,
        "balanced_accuracy_ci": at.balanced_accuracy_ci,
        "noise_ceiling": oracle.balanced_accuracy if oracle else None,
        "noise_ceiling_ci": at.noise_ceiling_ci,
        **plain(report.forecasts),
        "baselines": {name: plain(score) for name, score in at.baselines.items()},
        "weights": [plain(each) for each in report.weights],
        "harder_splits": {split: plain(each) for split, each in reports.items() if split != BY_RUN},
    }


def _real(rows: tuple[MigrationRow, ...] | None, step: _Step) -> dict[str, Any]:
    document: dict[str, Any] = {"cubemig": _cubemig()}
    if rows is None:
        why = "no real data set: `natwork migrations collect --backend real --out FILE` makes one, --real names it"
        return {"rows": 0, "reason": why, **document}
    shipped, sha256 = read_selector()
    table = RunTable.of(rows)
    forecasts = shipped.forecasts(table.loads)

    def looked_at(name: str, found: Forecasts) -> SplitReport:
        return judge(rows, lambda _: found, name=name, seed=SelectorSettings().seed)

    document |= {
        "rows": len(rows),
        "runs": len(table.runs),
        "emulated_models": {"sha256": sha256, **plain(looked_at("models of the emulation", forecasts))},
        "rescaled_models": plain(looked_at("models of the emulation, rescaled", rescaled(forecasts, table))),
    }
    least = int(np.min([n for n in (~np.isnan(table.total_s)).sum(axis=0) if n]))
    if least <= MIN_RUNS:
        document["refitted"] = None
        document["refitted_reason"] = f"{least} runs of a method: refitting takes {MIN_RUNS + 1}"
        return document
    split = ONE_BY_ONE if len(table.runs) <= _FEW_RUNS else BY_RUN
    document["refitted"] = plain(held_out(rows, split=split, settings=SelectorSettings(), progress=step))
    return document


def _cubemig() -> dict[str, Any]:
    data_dir = settle().data_dir
    if data_dir is None or not (data_dir / "cubemig").is_dir():
        return {"dumps": 0, "reason": "no folder cubemig in data_dir (NATWORK_DATA_DIR); docs/data.md says what it is"}
    return {"of": "frozen time of cold migrations", **plain(judge_dumps(read_dumps(data_dir / "cubemig")))}


def _table(document: dict[str, Any], output: Format) -> None:
    rows: list[dict[str, Any]] = []
    for report in document["emulated"]["weights"]:
        policies = {"selector": report["selector"], "oracle": report["oracle"], **report["baselines"]}
        rows += [{"weight": report["weight"], "policy": name, **score} for name, score in policies.items()]
    columns = ("weight", "policy", "regret_pct", "hindsight_regret_pct", "mean_cost_s", "balanced_accuracy")
    write_rows(rows, columns, output, title="migration models, emulated, held-out runs")
    emulated, real = document["emulated"], document["real"]
    talk.print(
        f"total time: error {emulated['total_time_mape_pct']:.1f} % (no model can do better than "
        f"{emulated['total_time_mape_floor_pct']:.1f} %), within p95: {emulated['total_p95_coverage']:.1%}",
        soft_wrap=True,
    )
    talk.print(f"real: {real['rows']} migrations{': ' + real['reason'] if 'reason' in real else ''}", soft_wrap=True)
