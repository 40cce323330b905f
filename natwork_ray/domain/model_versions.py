"""Versions of trained models: which there are, and which one answers."""

from __future__ import annotations

from natwork_ray.domain.values import value


@value
class ModelVersion:
    """One version of a model that a store keeps.

    Attributes:
        name: of the model, such as `profiler`.
        sha256: digest of its bytes, hex: its identity, also in every answer that it gave.
        size_bytes: length of its bytes.
        saved_s: when it was stored, seconds since the epoch; None for one that came with the package.
        packaged: it came with the package.
    """

    name: str
    sha256: str
    size_bytes: int
    saved_s: float | None
    packaged: bool = False


@value
class ModelInUse:
    """The version of a model that answers, and how it came to that.

    Attributes:
        name, sha256: as in `ModelVersion`.
        at_s: when it was chosen, on the backend's clock; None while it is what the system was started with.
        by, note: who chose it and why; empty likewise.
        previous: digest of the version that answered before; None likewise.
    """

    name: str
    sha256: str
    at_s: float | None = None
    by: str = ""
    note: str = ""
    previous: str | None = None


@value
class ModelOverview:
    """A model: the version in use, and every version kept, newest first."""

    name: str
    in_use: ModelInUse
    versions: tuple[ModelVersion, ...]
