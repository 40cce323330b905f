"""The loop as the journal of a state directory tells it: for commands that read, while it runs and afterwards."""

from __future__ import annotations

from pathlib import Path

from natwork_ray.adapters.sqlite_journal import SqliteJournal
from natwork_ray.control.loop import ControlLoop
from natwork_ray.control.moving import predict_move
from natwork_ray.control.service import StoredEvent
from natwork_ray.domain.values import decode


def replayed_loop(state_dir: Path) -> ControlLoop:
    """The loop after every event that was committed.

    Raises:
        PreconditionError: there is no journal.
        StoreError, InputError, VerificationError: it cannot be read.
    """
    loop = ControlLoop(predict_move)
    journal = SqliteJournal.open_read_only(state_dir)
    try:
        for _, body in journal.events():
            stored: StoredEvent = decode(StoredEvent, body)
            loop.handle(stored.event, decided=stored.decisions)
    finally:
        journal.close()
    return loop
