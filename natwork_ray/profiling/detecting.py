"""What a detector is, whichever it is: windows and reference rows in, scores and verdicts out (D3.3 section 6.1.1).

Two detectors share this protocol: `best`, the default, and `annex-a`, the networks of D3.3 Annex A alone.
`TrainingSettings.detector` says which one `train` makes, and a model's card which one it is.

    >>> detector: Detector = loads(data)
    >>> scores = detector.score(window.values, book.references(window.services))
"""

from __future__ import annotations

from typing import Protocol

from natwork_ray.domain.telemetry import TelemetryWindow
from natwork_ray.profiling.model_card import ModelCard
from natwork_ray.profiling.profile import Floats, ProfileBook
from natwork_ray.profiling.verdicts import Assessment, Scores


class Detector(Protocol):
    """A trained detector. Stateless: windows and references come with each call."""

    @property
    def card(self) -> ModelCard:
        """What the model says of itself."""
        ...

    @property
    def book(self) -> ProfileBook:
        """Profiles of the recorded services that it was trained on, and the fleet-wide one."""
        ...

    @property
    def window(self) -> int:
        """T, the samples per window that it looks at."""
        ...

    @property
    def history(self) -> int:
        """Samples per window that it makes use of where it is given more than `window`."""
        ...

    def score(self, values: Floats, references: Floats) -> Scores:
        """Score N windows against N reference rows.

        Args:
            values: float32 (N, T, 12), SI units, NaN where missing; T at least `window`, of which the last `window`
                samples count.
            references: float32 (N, P), from `ProfileBook.references`.

        Raises:
            InputError: wrong shape or type, infinite or negative samples, or references out of range.
        """
        ...

    def assess(self, window: TelemetryWindow, book: ProfileBook) -> Assessment:
        """Score a window against the book's profiles, then the detector's own; its fleet profile where neither knows.

        Raises:
            InputError: as `score`.
        """
        ...
