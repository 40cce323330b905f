"""`natwork audit`: list, show, verify and export the audit log, offline."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from natwork_ray.adapters.sqlite_journal import SqliteJournal
from natwork_ray.audit.log import AuditEntry
from natwork_ray.audit.notes import VerifierKey
from natwork_ray.audit.verify import verify_export
from natwork_ray.cli.output import (
    Format,
    FormatOption,
    JsonOption,
    chosen,
    require_room,
    talk,
    write_json,
    write_rows,
    written_whole,
)
from natwork_ray.cli.settings import settle
from natwork_ray.domain.auditing import AuditKind
from natwork_ray.errors import InputError, PreconditionError, UsageError

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The tamper-evident log of what was seen and done.")

_MAX_SMALL_FILE = 65_536


@app.command("list")
def list_entries(
    start: Annotated[int, typer.Option(min=0, help="First entry.")] = 0,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")] = 100,
    kind: Annotated[AuditKind | None, typer.Option(help="Only entries of this kind.")] = None,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Entries of the log in the state directory."""
    journal = SqliteJournal.open_read_only(settle().state_dir)
    try:
        rows = [_row(entry) for entry in journal.entries(start, limit, kind)]
    finally:
        journal.close()
    write_rows(rows, ("seq", "at_s", "kind", "subject"), chosen(output, as_json), title="entries")


@app.command()
def show(seq: Annotated[int, typer.Argument(min=0, help="Number of the entry.")]) -> None:
    """One entry whole, as JSON, with its inclusion proof."""
    journal = SqliteJournal.open_read_only(settle().state_dir)
    try:
        entry, proof = journal.entry(seq), journal.inclusion_proof(seq)
    finally:
        journal.close()
    inclusion = {
        "size": proof.size,
        "hashes": [h.hex() for h in proof.hashes],
        "checkpoint": proof.checkpoint.decode("utf-8"),
    }
    write_json({**_row(entry), "line": entry.line.decode("utf-8"), "inclusion": inclusion})


@app.command()
def export(
    file: Annotated[Path | None, typer.Argument(help="File to write; stdout without it.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file when it is there.")] = False,
) -> None:
    """Write the whole log with its signed checkpoint, for `natwork audit verify`."""
    state_dir = settle().state_dir
    if file is not None:
        require_room(file, force=force)
        if file.resolve().parent == state_dir.resolve():
            raise UsageError(f"{file} is in the state directory", hint="write the export elsewhere")
    journal = SqliteJournal.open_read_only(state_dir)
    try:
        if file is None:
            journal.export(sys.stdout.buffer)
            sys.stdout.buffer.flush()
        else:
            with written_whole(file) as stream:
                entries = journal.export(stream)
            talk.print(f"{entries} entries written to {file}; public key {journal.verifier_key}", soft_wrap=True)
    finally:
        journal.close()


@app.command(
    epilog="Examples:\n\nnatwork audit verify runs/demo/audit.log --public-key runs/demo/state/audit.pub\n\n"
    "natwork audit verify audit.log --witness older-checkpoint.txt --json"
)
def verify(
    file: Annotated[Path, typer.Argument(help="An exported log.")],
    public_key: Annotated[
        str | None,
        typer.Option(help="The log's public key, or a file that holds it. Without it the file's own counts."),
    ] = None,
    witness: Annotated[
        Path | None, typer.Option(help="An older signed checkpoint, kept elsewhere: the log must extend it.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check every byte of an exported log. Exit 4, and where, when anything was changed, dropped or cut off."""
    pinned = VerifierKey.parse(_key_text(public_key)) if public_key else None
    older = _small(witness) if witness else None
    try:
        stream = file.open("rb")
    except OSError as error:
        raise PreconditionError(f"cannot read {file}: {error}", hint="name a file that `audit export` wrote") from error
    with stream:
        report = verify_export(stream, pinned_key=pinned, witness=older)
    if as_json:
        write_json(
            {"verified": True, **{k: v for k, v in asdict(report).items() if k != "key"}, "key": str(report.key)}
        )
        return
    talk.print(f"verified: {report.entries} entries, root {report.root}", style="green")
    if not report.pinned:
        talk.print(
            f"The key was taken from the file itself ({report.key_id}): whoever made the file could have made the key. "
            "Compare it, or pass --public-key.",
            style="yellow",
            soft_wrap=True,
        )


def _row(entry: AuditEntry) -> dict[str, object]:
    return {"seq": entry.seq, "at_s": entry.at_s, "kind": str(entry.kind), "subject": entry.subject, "body": entry.body}


def _key_text(given: str) -> str:
    path = Path(given)
    # A key's text may be longer than a file's name can be.
    if len(path.name) < 256 and path.is_file():
        return _small(path).decode("utf-8", errors="replace").strip()
    return given


def _small(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_SMALL_FILE + 1)
    except OSError as error:
        raise PreconditionError(f"cannot read {path}: {error}", hint="check the path") from error
    if len(data) > _MAX_SMALL_FILE:
        raise InputError(f"{path} is larger than {_MAX_SMALL_FILE} bytes", hint="name a key or a checkpoint")
    return data
