"""`natwork migrations collect`: the data set of D3.3 section 2.1, emulated or on the machine's testbed."""

from __future__ import annotations

import contextlib
import fnmatch
import os
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from natwork_ray.adapters.migration_data import CollectionFile, part_of
from natwork_ray.cli.output import JsonOption, progress_bar, require_room, talk, write_json
from natwork_ray.cli.workers import own_cluster
from natwork_ray.domain.values import Backend
from natwork_ray.emulation.collecting import collect_emulated
from natwork_ray.errors import UsageError
from natwork_ray.limi.collection import REPETITIONS, CollectionPlan, RunKey, class_names
from natwork_ray.limi.dataset import MigrationRow

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Collect the migration data set.")

DATA_SEED = 11
# A task on Ray starts for the price of some runs, so a small collection is quicker without.
_WORTH_RAY = 200
Source = Generator[tuple[MigrationRow, ...], None, None]

EXAMPLES = (
    "Examples:\n\nnatwork migrations collect --out migrations.csv.gz   (6,120 emulated migrations)\n\n"
    "natwork migrations collect --runs 2 --classes 'cpu-high_*' --out some.csv\n\n"
    "natwork migrations collect --backend real --runs 3 --out real.csv   (as root; see natwork doctor)"
)


@app.command("collect", epilog=EXAMPLES)
def collect(
    out: Annotated[Path, typer.Option(help="File to write: .csv, or .csv.gz to have it compressed.")],
    backend: Annotated[
        Backend, typer.Option(help="emulated, or real: on a testbed of this machine.")
    ] = Backend.EMULATED,
    runs: Annotated[int, typer.Option(min=1, help="Repetitions of each load class under each method.")] = REPETITIONS,
    seed: Annotated[int, typer.Option(min=0, help="Seed of loads and noise.")] = DATA_SEED,
    classes: Annotated[
        list[str] | None, typer.Option(help="Load classes, by name or pattern; as often as needed (default: all).")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes, on Ray; 0 or 1 for none besides this one (default: CPUs).")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be collected, and collect nothing.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the file when it is there.")] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Throw away what was kept of one that was cut off.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Collect migrations: each load class, moved by each method, so many times. What was cut off goes on."""
    if out.suffix not in (".csv", ".gz"):
        raise UsageError(f"--out {out}: no name for a data set", hint="let it end with .csv or .csv.gz")
    plan, left_out = plan_of(backend, seed=seed, runs=runs, patterns=classes)
    result: dict[str, Any] = {
        "file": str(out),
        "backend": str(plan.backend),
        "seed": plan.seed,
        "runs": plan.repetitions,
        "classes": list(plan.classes),
        "methods": [str(method) for method in plan.methods],
        "left_out": [{"class": name, "reason": reason} for name, reason in left_out],
        "migrations": plan.migrations,
    }
    for name, reason in left_out:
        talk.print(f"left out: {name}: {reason}", soft_wrap=True)
    if dry_run:
        result["resumes"] = part_of(out).exists() and not restart
        _tell(result, as_json, f"would collect {plan.migrations} migrations of {len(plan.classes)} classes")
        return
    require_room(out, force=force)
    with CollectionFile.open(out, plan, restart=restart) as collection, progress_bar(quiet=as_json) as bar:
        kept = collection.done
        task = bar.add_task(f"{plan.backend} migrations", total=plan.migrations, completed=kept)
        # Closed, not left to the garbage collector: an interrupt must end the cluster.
        with contextlib.closing(_source(plan, collection.missing(), workers)) as source:
            for rows in source:
                collection.append(rows)
                bar.update(task, completed=collection.done)
        collection.finish()
    result |= {"resumed_from": kept, "bytes": out.stat().st_size}
    _tell(result, as_json, f"{out}: {plan.migrations} migrations, {kept} of them from before")


def plan_of(
    backend: Backend, *, seed: int, runs: int, patterns: Sequence[str] | None
) -> tuple[CollectionPlan, tuple[tuple[str, str], ...]]:
    """What to collect, and the classes that this machine cannot hold, with the reason.

    Raises:
        UsageError: a pattern that no class matches, or a backend that has no migrations.
        PreconditionError: the real backend on a machine that cannot migrate, and why.
    """
    names = class_names()
    if patterns:
        for pattern in patterns:
            if not fnmatch.filter(names, pattern):
                raise UsageError(f"no load class matches {pattern!r}", hint="docs/migration-data.md lists all 34")
        names = tuple(name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))
    match backend:
        case Backend.EMULATED:
            return CollectionPlan(backend=backend, seed=seed, repetitions=runs, classes=names), ()
        case Backend.REAL:
            from natwork_ray.adapters.real_collecting import real_plan

            return real_plan(seed=seed, repetitions=runs, classes=names)
        case Backend.REPLAYED:
            raise UsageError("replayed migrations cannot be collected", hint="use emulated or real")


def collected(plan: CollectionPlan, step: Callable[[int, int, str], None]) -> tuple[MigrationRow, ...]:
    """An emulated collection in this process, kept in memory."""
    keys = plan.keys()
    rows: list[MigrationRow] = []
    for done, key in enumerate(keys):
        step(done, len(keys), "collecting")
        rows += collect_emulated(plan, [key])
    return tuple(rows)


def _source(plan: CollectionPlan, keys: Sequence[RunKey], workers: int | None) -> Source:
    if plan.backend is Backend.REAL:
        from natwork_ray.adapters.real_collecting import collect_real

        return collect_real(plan, keys)
    hands = (os.cpu_count() or 1) if workers is None else workers
    if hands <= 1 or (workers is None and len(keys) < _WORTH_RAY):
        return (collect_emulated(plan, [key]) for key in keys)
    return _on_ray(plan, keys, hands)


def _on_ray(plan: CollectionPlan, keys: Sequence[RunKey], workers: int) -> Source:
    """A cluster of our own for as long as it takes."""
    with own_cluster(workers, prefix="natwork-collect-"):
        from agents.collecting import fan_out

        yield from fan_out(plan, keys, workers=workers)


def _tell(result: dict[str, Any], as_json: bool, words: str) -> None:
    if as_json:
        write_json(result)
    else:
        talk.print(words, soft_wrap=True)
