"""What a node has noted of the containers that arrived at it or left it, durably: the target's word (D3.3 section 2.1).

One journal per container, under `CONTAINER@register`; it is never closed, since a withdrawn key has to be refused for
ever. Notes are a few dozen bytes, one to four per migration.

- `expected`: the container is going to arrive here under this key (prepare).
- `restored`: it runs here. The decision that counts.
- `whole`: and all of its memory is here: at once, or when the last lazy page has arrived.
- `withdrawn`: the key may never be restored here. Final.
- `leaving`: the container is going to leave this node under this key.
- `departed`: it went, and what was left of it here is gone.

The order of the notes tells whether a key is superseded: the container has arrived again, or is on its way elsewhere,
under another key. A superseded key may not touch it, so a withdrawal that arrives late cannot end a container that came
back.
"""

from __future__ import annotations

from enum import StrEnum

from natwork_ray.domain.values import decode, encode, value
from natwork_ray.errors import InputError, StoreError
from natwork_ray.ports import MigrationJournal

SUFFIX = "@register"


class Standing(StrEnum):
    """What was noted last of a key."""

    EXPECTED = "expected"
    RESTORED = "restored"
    WHOLE = "whole"
    WITHDRAWN = "withdrawn"
    LEAVING = "leaving"
    DEPARTED = "departed"


@value
class Note:
    """One line of the register."""

    key: str
    standing: Standing


class Register:
    """The notes about one container on one node."""

    def __init__(self, journal: MigrationJournal, container: str) -> None:
        """Read what was noted before.

        Raises:
            StoreError: it cannot be read, or holds something else.
        """
        self._journal = journal
        self._name = container + SUFFIX
        self._standing: dict[str, Standing] = {}
        self._first: dict[str, tuple[int, Standing]] = {}
        self._newest: dict[Standing, tuple[int, str]] = {}
        self._notes = 0
        for line in journal.read(self._name):
            try:
                self._take(decode(Note, line))
            except InputError as error:
                raise StoreError(
                    f"the register of {container} holds a line that is no note: {error.what}",
                    hint="restore the journal's folder from a backup, or set the file aside while no migration runs",
                ) from error

    def standing(self, key: str) -> Standing | None:
        """What was noted last of a key; None when nothing was."""
        return self._standing.get(key)

    def expected(self, key: str) -> bool:
        """Whether the key was ever prepared here."""
        return self._first.get(key, (0, None))[1] is Standing.EXPECTED

    def superseded(self, key: str) -> bool:
        """Whether the container has come, or a departure of it has begun, under another key since this one began."""
        if key not in self._first:
            return False
        began, how = self._first[key]
        moves = (Standing.EXPECTED, Standing.LEAVING) if how is Standing.EXPECTED else (Standing.EXPECTED,)
        return any(position > began and other != key for position, other in map(self._newest_of, moves))

    @property
    def arriving(self) -> str:
        """The key under which the container runs here while its memory is on the way; empty when there is none."""
        position, key = self._newest_of(Standing.EXPECTED)
        return key if position and self._standing[key] is Standing.RESTORED else ""

    def note(self, key: str, standing: Standing) -> None:
        """Note it, durably when this returns; a repetition costs nothing.

        Raises:
            StoreError: the disk refused; nothing was noted.
        """
        if self._standing.get(key) is not standing:
            note = Note(key=key, standing=standing)
            self._journal.append(self._name, encode(note))
            self._take(note)

    def _newest_of(self, standing: Standing) -> tuple[int, str]:
        return self._newest.get(standing, (0, ""))

    def _take(self, note: Note) -> None:
        self._notes += 1
        self._standing[note.key] = note.standing
        self._first.setdefault(note.key, (self._notes, note.standing))
        self._newest[note.standing] = (self._notes, note.key)
