"""The checksum that a model file carries in its own header, so that a damaged copy is refused and never judges.

A flipped bit in a weight is still a number, and a model with it still answers: types, shapes and ranges cannot tell.
The checksum is the SHA-256 of the whole file, header included, with 64 zeros where the checksum itself stands. It
leads the one entry that our files have in the metadata of a safetensors header (the library writes several entries in
no particular order): `"natwork": "sha256:<64 hex digits> <the card>"`.

Against accidents only: whoever changes a file on purpose can compute the checksum anew. Who wrote a file is a question
for signatures, which are left out here.

    data = with_checksum(save(arrays, metadata={ENTRY: NO_CHECKSUM + card}))
    verify_checksum(data)
    card = without_checksum(metadata[ENTRY])
"""

from __future__ import annotations

import hashlib
import re

from natwork_ray.errors import InputError

ENTRY = "natwork"
_PREFIX = "sha256:"
_ZEROS = "0" * 64
# What leads the entry before the checksum is known.
NO_CHECKSUM = f"{_PREFIX}{_ZEROS} "

# Quotes within JSON strings are escaped, so no card and no name of an array can look like the entry.
_PLACE = re.compile(rf'"{ENTRY}": ?"{_PREFIX}([0-9a-f]{{64}}) '.encode())
_HINT = "copy the file again, or train it anew"


def with_checksum(data: bytes) -> bytes:
    """A safetensors file, its checksum filled in.

    Args:
        data: the file, its entry led by `NO_CHECKSUM` or by a checksum that is out of date.

    Raises:
        InputError: there is no place for a checksum.
    """
    start, end = _place(data)
    return data[:start] + _computed(data, start, end) + data[end:]


def verify_checksum(data: bytes) -> None:
    """Let a file pass that is bit for bit what `with_checksum` gave.

    Raises:
        InputError: it has no checksum, or another one.
    """
    start, end = _place(data)
    if data[start:end] != _computed(data, start, end):
        raise InputError("model file is damaged: it does not match its own checksum", hint=_HINT)


def without_checksum(entry: object) -> str:
    """The card within an entry as it was read, whether or not the checksum is right.

    Raises:
        InputError: the entry is no text that a checksum leads.
    """
    if not isinstance(entry, str) or not entry.startswith(_PREFIX) or entry[len(NO_CHECKSUM) - 1 :][:1] != " ":
        raise InputError("model file has no checksum", hint=_HINT)
    return entry[len(NO_CHECKSUM) :]


def _place(data: bytes) -> tuple[int, int]:
    header_end = 8 + int.from_bytes(data[:8], "little")
    found = _PLACE.search(data, 8, min(header_end, len(data)))
    if found is None:
        raise InputError("model file has no checksum", hint=_HINT)
    return found.span(1)


def _computed(data: bytes, start: int, end: int) -> bytes:
    digest = hashlib.sha256(data[:start])
    digest.update(_ZEROS.encode())
    digest.update(data[end:])
    return digest.hexdigest().encode()
