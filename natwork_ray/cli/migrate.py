"""`natwork migrate`, `migrate-service`, `migration list`, `migration show`: live migration by hand (D3.3 section 2.1).

An order goes the way of every decision: it is held against the quota, recorded in the audit log before and after, and
carried out by the LiMi agents; only the word that starts it is a person's (docs/adr/0020).
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from natwork_ray.adapters.testbed import FOLDER as TESTBED_FOLDER
from natwork_ray.adapters.testbed_state import RECORD as TESTBED_RECORD
from natwork_ray.backends import build_world
from natwork_ray.cli.doors import Doors
from natwork_ray.cli.migrating import (
    InProcess,
    MigrationShell,
    ThroughDoors,
    Wish,
    held_by,
    left_open,
    over,
    under_way,
)
from natwork_ray.cli.migration_view import LEFT_OPEN, PhaseBars, consideration_lines, gantt, told
from natwork_ray.cli.operate import user_name
from natwork_ray.cli.output import Format, FormatOption, JsonOption, chosen, printable, talk, write_json, write_rows
from natwork_ray.cli.replayed import replayed_loop
from natwork_ray.cli.schedule_view import service_document, service_lines
from natwork_ray.cli.settings import settle
from natwork_ray.config import Config
from natwork_ray.control.desk import Migration, MoveWish, ServiceWish, check_key, check_wish, migrations_in
from natwork_ray.domain.decisions import DecisionStatus
from natwork_ray.domain.migrations import MigrationState
from natwork_ray.domain.phases import MigrationMethod, OnFailure
from natwork_ray.domain.values import plain
from natwork_ray.errors import ConflictError, ExitCode, NatworkError, NotFoundError, PreconditionError, UsageError

EXAMPLES = """Examples:

natwork migrate video-analytics --to core-1

natwork migrate echo --to node-2 --method post-copy --json

natwork migrate echo --to node-2 --dry-run     (forecasts of the four methods, the choice and why; changes nothing)

natwork migrate mobility --to core-1 --backend emulated     (nothing is running: one emulated world for this command)
"""
SERVICE_EXAMPLES = """Examples:

natwork migrate-service traffic --to core-1

natwork migrate-service traffic --spread --dry-run     (the plan, and when each container would be down)
"""

app = typer.Typer(no_args_is_help=True, help="Live migrations that were ordered or decided, with their records.")


class Method(StrEnum):
    """What `--method` takes."""

    AUTO = "auto"
    COLD = "cold"
    PRE_COPY = "pre-copy"
    POST_COPY = "post-copy"
    HYBRID = "hybrid"


class Where(StrEnum):
    """What `--backend` takes."""

    EMULATED = "emulated"
    TESTBED = "testbed"


Weight = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Share of total time against downtime in the choice (default: migration.weight)."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Measure, forecast and choose, and change nothing.")]
By = Annotated[str | None, typer.Option(help="Who; goes into the audit log (default: the user's name).")]
Note = Annotated[str, typer.Option(help="Why; goes into the audit log.")]
Patience = Annotated[float, typer.Option(min=1, help="Stop waiting after so many seconds (exit 6); it goes on.")]
Backend = Annotated[
    Where | None,
    typer.Option(help="Where, when nothing is running: the testbed, or an emulated world for this one command."),
]
Key = Annotated[
    str | None,
    typer.Option("--key", help="Idempotency key: the same order under the same key is carried out once."),
]


def migrate(
    container: Annotated[str, typer.Argument(help="The container to move.")],
    to: Annotated[str, typer.Option(help="The node to move it to.")],
    method: Annotated[Method, typer.Option(help="How; auto measures the container and chooses.")] = Method.AUTO,
    weight: Weight = None,
    dry_run: DryRun = False,
    by: By = None,
    note: Note = "",
    wait: Patience = 600.0,
    backend: Backend = None,
    key: Key = None,
    as_json: JsonOption = False,
) -> None:
    """Move a running container to another node, with its address and its sessions."""
    wish = MoveWish(
        container=container,
        target=to,
        by=by or user_name(),
        method=None if method is Method.AUTO else MigrationMethod(method),
        weight=weight,
        note=note,
    )
    _do(wish, dry_run=dry_run, wait=wait, backend=backend, key=key, as_json=as_json)


def migrate_service(
    name: Annotated[str, typer.Argument(help="The network service whose containers move.")],
    to: Annotated[str | None, typer.Option(help="The node to move all of them to.")] = None,
    spread: Annotated[bool, typer.Option("--spread", help="Each to the node with most room instead.")] = False,
    on_failure: Annotated[
        OnFailure, typer.Option(help="When one cannot be moved: bring the others back while they can, or carry on.")
    ] = OnFailure.BRING_BACK,
    weight: Weight = None,
    dry_run: DryRun = False,
    by: By = None,
    note: Note = "",
    wait: Patience = 600.0,
    backend: Backend = None,
    key: Key = None,
    as_json: JsonOption = False,
) -> None:
    """Move every container of a network service, so timed that they arrive together."""
    if spread == (to is not None):
        raise UsageError("where to?", hint="give either --to NODE or --spread")
    wish = ServiceWish(service=name, target=to, by=by or user_name(), weight=weight, note=note, on_failure=on_failure)
    _do(wish, dry_run=dry_run, wait=wait, backend=backend, key=key, as_json=as_json)


def _do(wish: Wish, *, dry_run: bool, wait: float, backend: Where | None, key: str | None, as_json: bool) -> None:
    if key is not None:
        check_key(key)
    check_wish(wish)
    config = settle(backend=backend.value if backend else None)
    with ExitStack() as temporary:
        shell = _shell(config, asked=backend, temporary=temporary)
        if dry_run:
            considered = shell.consider(wish)
            if as_json:
                write_json(plain(considered))
            else:
                for line in consideration_lines(considered):
                    talk.print(printable(line), soft_wrap=True)
            if considered.decision.status is DecisionStatus.REFUSED:
                raise typer.Exit(ExitCode.REFUSED)
            return
        with PhaseBars(quiet=as_json) as bars:
            found = shell.carry_out(wish, key=key or str(uuid.uuid4()), watch=bars.show, patience_s=wait)
    _report(found, single=isinstance(wish, MoveWish), as_json=as_json)


def _shell(config: Config, *, asked: Where | None, temporary: ExitStack) -> MigrationShell:
    """The running system where there is one; else this process, if there is a world that it can reach.

    Raises:
        UsageError: another backend was asked for than the one that runs.
        PreconditionError: nothing runs, and the emulated world lives in the system.
    """
    from agents import cluster

    if cluster.running(config.state_dir) is not None:
        doors = Doors(config.state_dir)
        if asked is not None and doors.config.backend != asked.value:
            raise UsageError(
                f"the system that runs has the backend {doors.config.backend}, not {asked}",
                hint="leave --backend out, or end the system with `natwork down` first",
            )
        return ThroughDoors(doors)
    if config.backend == "testbed":
        return InProcess(config, config.state_dir, build_world)
    if asked is Where.EMULATED:
        talk.print(f"One emulated world ({config.emulation.scenario}) for this command; nothing of it is kept.")
        folder = Path(temporary.enter_context(tempfile.TemporaryDirectory(prefix="natwork-")))
        return InProcess(config, folder / "state", build_world)
    raise PreconditionError(
        f"nothing is running in {config.state_dir}, and an emulated world lives in the running system",
        hint="start it with `natwork up`; or --backend emulated for a world of this one command; "
        "or --backend testbed after `natwork testbed up`",
    )


def _report(found: Sequence[Migration], *, single: bool, as_json: bool) -> None:
    documents = [told(m) for m in found]
    if as_json:
        write_json(
            documents[0]
            if single
            else {"decision": found[0].decision, "service": service_document(found), "migrations": documents}
        )
    else:
        for migration in found:
            for line in gantt(migration):
                talk.print(printable(line), soft_wrap=True)
        for line in () if single else service_lines(found):
            talk.print(printable(line), soft_wrap=True)
    states = {d["state"] for d in documents}
    if states == {MigrationState.REFUSED}:
        raise typer.Exit(ExitCode.REFUSED)
    if states != {MigrationState.MIGRATED}:
        raise typer.Exit(ExitCode.FAILED)


_COLUMNS = ("key", "at_s", "container", "source", "target", "method", "state", "total_s", "downtime_s", "backend")


@app.command("list")
def list_migrations(
    container: Annotated[str | None, typer.Option(help="Only those of this container.")] = None,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Live migrations, oldest first, read from the journal: while the loop runs, and afterwards."""
    state_dir = settle().state_dir
    found = migrations_in(replayed_loop(state_dir))
    left = {m.instruction.key for m in left_open(state_dir)}
    rows = [told(m, left_open=m.instruction.key in left) for m in found if container in (None, m.instruction.container)]
    write_rows(rows, _COLUMNS, chosen(output, as_json), title="migrations")
    if any(row["key"] in left for row in rows):
        talk.print(LEFT_OPEN, soft_wrap=True)


@app.command("show")
def show(
    key: Annotated[str, typer.Argument(help="Key of the migration, e.g. d-000004/0 (`natwork migration list`).")],
    as_json: JsonOption = False,
) -> None:
    """One live migration: its phases in time, its sizes, its forecast; while it runs, how far it has come."""
    state_dir = settle().state_dir
    found = next((m for m in migrations_in(replayed_loop(state_dir)) if m.instruction.key == key), None)
    if found is None:
        raise NotFoundError(f"there is no migration {key!r}", hint="`natwork migration list` lists them")
    left = any(m.instruction.key == key for m in left_open(state_dir))
    if not left and not over(found):
        found = _as_it_runs(state_dir, found)
    if as_json:
        write_json(told(found, left_open=left))
    else:
        for line in gantt(found, left_open=left):
            typer.echo(printable(line))


@app.command("recover")
def recover(as_json: JsonOption = False) -> None:
    """Bring to an end what a killed `natwork migrate` left open on the testbed; gives no new order."""
    from agents import cluster

    config = settle(backend=Where.TESTBED.value)
    if cluster.running(config.state_dir) is not None:
        raise ConflictError(
            "the system runs, and its agents bring what was left open to its end themselves",
            hint="`natwork migration list` shows how far they are",
        )
    left = left_open(config.state_dir)
    if not left and (pid := held_by(config.state_dir)) is not None:
        raise under_way(pid, config.state_dir)
    stands = (config.state_dir / TESTBED_FOLDER / TESTBED_RECORD).is_file()
    found = InProcess(config, config.state_dir, build_world).recover(left) if left or stands else ()
    if as_json:
        write_json({"migrations": [told(m, left_open=m.outcome is None) for m in found]})
    else:
        for migration in found:
            for line in gantt(migration, left_open=migration.outcome is None):
                typer.echo(printable(line))
        if not found:
            seen = "; the nodes' own journals were looked at and what they held open is settled" if stands else ""
            talk.print(f"nothing was left open in the control journal{seen}", soft_wrap=True)
    if any(m.outcome is None for m in found):
        raise typer.Exit(ExitCode.FAILED)


def _as_it_runs(state_dir: Path, found: Migration) -> Migration:
    """With its progress, where the system that runs it answers; else as the journal has it."""
    try:
        return ThroughDoors(Doors(state_dir)).migration(found.instruction.key)
    except NatworkError as error:
        talk.print(f"no progress to be had: {printable(error.what)}", soft_wrap=True)
        return found
