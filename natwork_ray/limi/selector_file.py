"""A method selector as one file: JSON with the card, the trees as text, and a digest. Never a pickle.

The digest tells a damaged file from a whole one; it is no signature, so the trees are checked all the same before
LightGBM reads them (`natwork_ray.trees.tree_text`). Reading is bounded. Anything odd is an `InputError`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from natwork_ray.domain.actions import MigrationMethod
from natwork_ray.domain.values import decode, encode, value
from natwork_ray.errors import InputError, PreconditionError
from natwork_ray.limi.boosters import trees_of
from natwork_ray.limi.selection import Duration, MethodSelector, PercentileModel
from natwork_ray.limi.selector_card import SelectorCard

DEFAULT_SELECTOR = "selector"
PACKAGED_SELECTOR = Path(__file__).parents[1] / "models" / f"{DEFAULT_SELECTOR}.json"
MAX_SELECTOR_BYTES = 8 * 2**20
_ANEW = "`natwork train selector` makes one; the shipped one comes back by installing again"
_HINT = "it must be a file that `natwork train selector` wrote"


@value
class TreeTexts:
    """The trees of one method and one duration."""

    method: MigrationMethod
    duration: Duration
    median: str
    margin: str


@value
class SelectorFile:
    """Everything in the file. `sha256` is of the trees' texts, in their order."""

    card: SelectorCard
    trees: tuple[TreeTexts, ...]
    sha256: str


def dumps(card: SelectorCard, trees: tuple[TreeTexts, ...]) -> bytes:
    """The file's bytes."""
    return encode(SelectorFile(card=card, trees=trees, sha256=_digest_of(trees))) + b"\n"


def loads(data: bytes) -> MethodSelector:
    """The selector in these bytes.

    Raises:
        InputError: anything but what `dumps` wrote.
        PreconditionError: LightGBM cannot be loaded.
    """
    if len(data) > MAX_SELECTOR_BYTES:
        raise InputError(f"selector of {len(data)} bytes exceeds {MAX_SELECTOR_BYTES}", hint=_HINT)
    file: SelectorFile = decode(SelectorFile, data)
    if _digest_of(file.trees) != file.sha256:
        raise InputError("selector's trees do not have the digest that the file states", hint=_HINT)
    expected = [(quality.method, duration) for quality in file.card.methods for duration in Duration]
    if [(t.method, t.duration) for t in file.trees] != expected:
        raise InputError("selector does not have the trees that its card names", hint=_HINT)
    calibrations = {
        (q.method, duration): q.total if duration is Duration.TOTAL else q.downtime
        for q in file.card.methods
        for duration in Duration
    }
    return MethodSelector(
        file.card,
        {
            (t.method, t.duration): PercentileModel(
                trees_of(t.median), trees_of(t.margin), calibrations[t.method, t.duration]
            )
            for t in file.trees
        },
    )


def read_selector(path: Path = PACKAGED_SELECTOR) -> tuple[MethodSelector, str]:
    """The selector in a file, and the SHA-256 of the file.

    Raises:
        PreconditionError: there is no such file, or LightGBM cannot be loaded.
        InputError: the file is damaged; the message names it.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_SELECTOR_BYTES + 1)
    except OSError as error:
        raise PreconditionError(f"cannot read the selector {path}: {error}", hint=_ANEW) from error
    try:
        return loads(data), digest(data)
    except InputError as error:
        raise InputError(f"the selector {path} is damaged: {error.what}", hint=_ANEW) from error


def digest(data: bytes) -> str:
    """SHA-256 of a selector's bytes, hex: which model said so."""
    return hashlib.sha256(data).hexdigest()


def _digest_of(trees: tuple[TreeTexts, ...]) -> str:
    every = hashlib.sha256()
    for each in trees:
        for text in (each.median, each.margin):
            raw = text.encode()
            every.update(len(raw).to_bytes(8, "big") + raw)
    return every.hexdigest()
