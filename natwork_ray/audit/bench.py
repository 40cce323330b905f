"""How fast the audit log is: append through a journal, then verify its export. `natwork bench audit` prints it.

The journal comes as an argument, so that what is measured is the whole way to the disk, with group commit: one commit
of `batch` records, each followed by its durable write and its signed checkpoint. Verification reads the export from a
temporary file, as an auditor would.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from typing import BinaryIO, Protocol

from natwork_ray.audit.notes import VerifierKey
from natwork_ray.audit.verify import verify_export
from natwork_ray.domain.auditing import AuditKind, AuditRecord
from natwork_ray.domain.values import value
from natwork_ray.errors import UsageError


class ExportingJournal(Protocol):
    """What the measurement needs of a journal."""

    @property
    def verifier_key(self) -> VerifierKey:
        """The key that checkpoints are signed with."""
        ...

    def commit(self, events: Sequence[tuple[str, bytes]], records: Sequence[AuditRecord]) -> None:
        """One durable transaction."""
        ...

    def export(self, stream: BinaryIO) -> int:
        """Write the export; return the number of entries."""
        ...

    def close(self) -> None:
        """Release the files."""
        ...


@value
class AuditBench:
    """What was measured on this machine.

    `verify_million_s` is measured where `entries` is 1,000,000, otherwise scaled from what was (the work is linear).
    """

    entries: int
    batch: int
    bytes_per_entry: float
    append_entries_per_s: float
    commit_p50_ms: float
    commit_p99_ms: float
    export_entries_per_s: float
    verify_entries_per_s: float
    verify_million_s: float


def measure(
    journal_factory: Callable[[], ExportingJournal],
    *,
    entries: int = 100_000,
    batch: int = 500,
    clock: Callable[[], float] = time.perf_counter,
) -> AuditBench:
    """Append `entries` records in commits of `batch` to a fresh journal, export it, and verify the export.

    Raises:
        UsageError: `entries` or `batch` below 1, or the journal was not empty.
        VerificationError: the export does not verify.
    """
    if entries < 1 or batch < 1:
        raise UsageError(f"entries {entries}, batch {batch}", hint="both are at least 1")
    journal = journal_factory()
    try:
        commits: list[float] = []
        for start in range(0, entries, batch):
            records = [_record(seq) for seq in range(start, min(start + batch, entries))]
            begin = clock()
            journal.commit([(f"bench-{start}", b"{}")], records)
            commits.append(clock() - begin)
        with tempfile.TemporaryFile() as stream:
            begin = clock()
            written = journal.export(stream)
            export_s = clock() - begin
            if written != entries:
                raise UsageError(f"the journal holds {written} entries, {entries} are ours", hint="use a fresh one")
            stream.seek(0)
            begin = clock()
            report = verify_export(stream, pinned_key=journal.verifier_key)
            verify_s = clock() - begin
    finally:
        journal.close()
    commits.sort()
    return AuditBench(
        entries=entries,
        batch=batch,
        bytes_per_entry=report.bytes / entries,
        append_entries_per_s=entries / sum(commits),
        commit_p50_ms=1000 * commits[len(commits) // 2],
        commit_p99_ms=1000 * commits[min(len(commits) - 1, len(commits) * 99 // 100)],
        export_entries_per_s=entries / export_s,
        verify_entries_per_s=entries / verify_s,
        verify_million_s=verify_s / entries * 1_000_000,
    )


def _record(seq: int) -> AuditRecord:
    """A record of the size that verdicts have in a real run."""
    body = {"label": "cpu", "reason": "CPU use is above its profile for 3 windows", "score": seq / 7, "window": seq}
    return AuditRecord(at_s=float(seq), kind=AuditKind.VERDICT, subject=f"smart-city/camera-{seq % 100}", body=body)
