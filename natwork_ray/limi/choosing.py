"""Choosing the method of a migration: the seam between who measures and who knows.

A `MethodChooser` gets what was measured before the migration and answers with a forecast of each method that is
possible, and with the one that it would take. `ByModel` asks the learnt selector (`natwork_ray.limi.selection`);
`ByEquations` is for machines that have no model: the published equations of `natwork_ray.limi.durations`.

`weight` is the share of total time against downtime: loss = weight * total + (1 - weight) * downtime, both as medians.

    >>> choice = ByEquations().choose(load, tuple(MigrationMethod), weight=0.2)   # doctest: +SKIP
    >>> choice.method, choice.chosen_by                                           # doctest: +SKIP
    (<MigrationMethod.PRE_COPY: 'pre-copy'>, 'rule')
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from natwork_ray.domain.migrations import ContainerLoad, MethodReason, MigrationForecast, MigrationOutlook
from natwork_ray.domain.phases import MigrationMethod
from natwork_ray.domain.values import Backend
from natwork_ray.errors import PreconditionError, UsageError
from natwork_ray.limi.durations import DEFAULT_PARAMETERS, DurationParameters, MigrationInputs, predict, predict_p95

if TYPE_CHECKING:
    from natwork_ray.limi.selection import MethodSelector


@dataclass(frozen=True)
class MethodChoice:
    """The method to take, a forecast of every one that is possible, who chose (model or rule), and why."""

    method: MigrationMethod
    forecasts: tuple[MigrationForecast, ...]
    chosen_by: str
    reason: str

    @property
    def forecast(self) -> MigrationForecast:
        """Of the method chosen."""
        return next(f for f in self.forecasts if f.method is self.method)


class MethodChooser(Protocol):
    """Whoever can say how each method would go."""

    def choose(self, load: ContainerLoad, methods: Sequence[MigrationMethod], *, weight: float) -> MethodChoice:
        """The method with the least loss among `methods`.

        Raises:
            PreconditionError: `methods` is empty.
            UsageError: `weight` is not between 0 and 1.
        """
        ...


class ByEquations:
    """The rule: median durations from the equations, for the load as measured."""

    def __init__(self, parameters: DurationParameters = DEFAULT_PARAMETERS) -> None:
        self._parameters = parameters

    def choose(self, load: ContainerLoad, methods: Sequence[MigrationMethod], *, weight: float) -> MethodChoice:
        """See `MethodChooser`."""
        check_choice(methods, weight)
        inputs = MigrationInputs.of(load)
        forecasts = tuple(forecast(method, inputs, self._parameters) for method in MigrationMethod if method in methods)
        best = min(forecasts, key=lambda f: loss_s(f, weight))
        return MethodChoice(best.method, forecasts, "rule", why(best, forecasts, weight))


class Forecaster(Protocol):
    """What a learnt selector can do (`natwork_ray.limi.selection.MethodSelector`)."""

    def predict(self, load: ContainerLoad) -> tuple[MigrationForecast, ...]:
        """Every method's forecast."""
        ...

    def extrapolated(self, load: ContainerLoad) -> tuple[str, ...]:
        """Names of the quantities that lie outside what the training had seen."""
        ...


class SelectorFileLater:
    """The learnt selector in a file (None: the shipped one), read when it is first asked.

    LightGBM costs a second, and most processes ask nothing. Errors as `natwork_ray.limi.selector_file.read_selector`.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._selector: MethodSelector | None = None

    def _read(self) -> MethodSelector:
        from natwork_ray.limi.selector_file import PACKAGED_SELECTOR, read_selector

        if self._selector is None:
            self._selector, _ = read_selector(self._path.expanduser() if self._path else PACKAGED_SELECTOR)
        return self._selector

    def predict(self, load: ContainerLoad) -> tuple[MigrationForecast, ...]:
        """See `Forecaster`."""
        return self._read().predict(load)

    def extrapolated(self, load: ContainerLoad) -> tuple[str, ...]:
        """See `Forecaster`."""
        return self._read().extrapolated(load)


class ByModel:
    """The learnt selector, as a chooser."""

    def __init__(self, model: Forecaster) -> None:
        self._model = model

    def choose(self, load: ContainerLoad, methods: Sequence[MigrationMethod], *, weight: float) -> MethodChoice:
        """See `MethodChooser`."""
        check_choice(methods, weight)
        forecasts = tuple(f for f in self._model.predict(load) if f.method in methods)
        if not forecasts:
            raise PreconditionError(
                f"the selector does not know {', '.join(methods)}", hint="train one that does: `natwork train selector`"
            )
        best = min(forecasts, key=lambda f: loss_s(f, weight))
        outside = self._model.extrapolated(load)
        beyond = f"; beyond what it was trained on: {', '.join(outside)}" if outside else ""
        return MethodChoice(best.method, forecasts, "model", why(best, forecasts, weight) + beyond)


def outlook(
    container: str,
    *,
    source: str,
    target: str,
    backend: Backend,
    load: ContainerLoad,
    methods: Sequence[MigrationMethod],
    chooser: MethodChooser,
    weight: float,
    impossible: Sequence[MethodReason] = (),
) -> MigrationOutlook:
    """How a migration would go, by what was measured; without any possible method nothing is chosen."""
    choice = chooser.choose(load, methods, weight=weight) if methods else None
    return MigrationOutlook(
        container=container,
        source=source,
        target=target,
        backend=backend,
        weight=weight,
        load=load,
        forecasts=choice.forecasts if choice else (),
        chosen=choice.method if choice else None,
        chosen_by=choice.chosen_by if choice else "",
        reason=choice.reason if choice else "no method is possible between these nodes",
        impossible=tuple(impossible),
    )


def check_choice(methods: Sequence[MigrationMethod], weight: float) -> None:
    """Refuse what no choice can be made of; errors as `MethodChooser.choose`."""
    if not methods:
        raise PreconditionError(
            "none of the four methods is possible here", hint="`natwork doctor` says what is missing"
        )
    if not (math.isfinite(weight) and 0 <= weight <= 1):
        raise UsageError(f"weight {weight} of total time against downtime", hint="give a number from 0 to 1")


def loss_s(forecast: MigrationForecast, weight: float) -> float:
    """What is minimised, in seconds."""
    return weight * forecast.total_p50_s + (1 - weight) * forecast.downtime_p50_s


def forecast(
    method: MigrationMethod, inputs: MigrationInputs, parameters: DurationParameters = DEFAULT_PARAMETERS
) -> MigrationForecast:
    """Median and 95th percentile of one method by the equations."""
    usual, slow = predict(method, inputs, parameters), predict_p95(method, inputs, parameters)
    return MigrationForecast(
        method=method,
        total_p50_s=usual.total_s,
        total_p95_s=slow.total_s,
        downtime_p50_s=usual.downtime_s,
        downtime_p95_s=slow.downtime_s,
    )


def why(best: MigrationForecast, forecasts: Sequence[MigrationForecast], weight: float) -> str:
    """The choice in words, with the runner-up."""
    told = (
        f"{best.method}: {best.downtime_p50_s:.2f} s of downtime and {best.total_p50_s:.2f} s in all, "
        f"weighed {1 - weight:.2f} to {weight:.2f}, cost least ({loss_s(best, weight):.2f} s)"
    )
    others = sorted((f for f in forecasts if f is not best), key=lambda f: loss_s(f, weight))
    return f"{told}; next is {others[0].method} ({loss_s(others[0], weight):.2f} s)" if others else told
