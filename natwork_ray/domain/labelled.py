"""Ground truth: what was injected or labelled, for training and for scoring."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.telemetry import N_METRICS
from natwork_ray.domain.values import Backend, value
from natwork_ray.errors import InputError


@value
class LabelledEvent:
    """One anomaly or attack that really took place, on the backend's clock.

    `kind` is free text: an `AnomalyKind`, an attack such as `ddos`, or `unlabelled` where the data do not say.
    """

    container: str
    kind: str
    start_s: float
    end_s: float


@dataclass(frozen=True, eq=False)
class LabelledRun:
    """One recorded or emulated run of one service: the unit that train and test splits must not cut.

    Attributes:
        service: whose profile applies.
        run: name of the run; two runs of one name belong to the same fold.
        backend: where the samples come from.
        step_s: seconds between samples.
        values: float32 (T, 12), order of `METRICS`, SI units, NaN where not measured.
        kinds: int8 (T,), index into `STAGE_2_CLASSES`; 0 is normal, -1 is anomalous of a type not labelled.
        commissioning: number of leading samples known to be normal, from which the profile may be learnt.
    """

    service: str
    run: str
    backend: Backend
    step_s: float
    values: NDArray[np.float32]
    kinds: NDArray[np.int8]
    commissioning: int

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.shape[1] != N_METRICS or self.kinds.shape != self.values.shape[:1]:
            raise InputError(
                f"run {self.run} of {self.service}: values {self.values.shape}, kinds {self.kinds.shape}",
                hint=f"values must be (samples, {N_METRICS}) and kinds (samples,)",
            )

    @property
    def anomalous(self) -> NDArray[np.bool_]:
        """(T,) true where the sample is labelled anomalous, of whatever type."""
        return np.asarray(self.kinds != 0)
