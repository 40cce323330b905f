"""`natwork detect --prometheus URL`: a live server followed step by step, every container judged at each.

The first window reaches back over the commissioning, so that a server which has watched the services for an hour gives
their profiles at once; what is missing of it is waited for, and until then a row says whose profile it was judged by.
Nothing that could not be judged looks normal: it has no score, and the reason beside it.

Times are the server's and this machine's together: samples are asked for at this machine's clock.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import numpy as np

from natwork_ray.cli.output import talk
from natwork_ray.cli.watching_view import HOUR_S, Judged, Page, Row, WatchOptions, show_once
from natwork_ray.config import Config
from natwork_ray.domain.anomaly import STAGE_2_CLASSES, AnomalyKind
from natwork_ray.domain.telemetry import METRICS
from natwork_ray.errors import NatworkError, UsageError
from natwork_ray.profiling.commissioning import Basis, Commissioning
from natwork_ray.profiling.profile import MIN_SAMPLES
from natwork_ray.profiling.verdicts import drivers

if TYPE_CHECKING:
    from natwork_ray.adapters.prometheus import PrometheusTelemetry
    from natwork_ray.adapters.prometheus_masks import Observation
    from natwork_ray.profiling.detecting import Detector

_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)\s*(ms|s|m|h|d|)")
_UNITS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
# A first window of more samples would be one that the server refuses.
_MOST_SAMPLES = 10_000


def seconds_of(text: str, option: str) -> float:
    """Seconds of `90s`, `1.5h`, `250ms`, `60`.

    Raises:
        UsageError: no duration, or none at all.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None or not float(match[1]):
        raise UsageError(f"{option} {text}: no duration", hint="such as 90s, 10m or 1h")
    return float(match[1]) * _UNITS[match[2]]


class Watch:
    """A detector on a live source. `step` is one look; time is an argument.

    Args:
        observe: gives the window that ends at a moment, of so many samples.
        detector: trained.
        commissioning_s: as `WatchOptions`.
        step_s: seconds between samples.

    Raises:
        UsageError: the commissioning is too short for any profile.
    """

    def __init__(
        self,
        observe: Callable[[float, int], Awaitable[Observation]],
        detector: Detector,
        *,
        commissioning_s: float,
        step_s: float,
    ) -> None:
        if round(commissioning_s / step_s) < MIN_SAMPLES:
            raise UsageError(
                f"a commissioning of {commissioning_s:g} s holds fewer than {MIN_SAMPLES} samples",
                hint=f"at least {MIN_SAMPLES * step_s:g} s at this step, better an hour",
            )
        self._observe, self._detector, self._step_s = observe, detector, step_s
        self._commissioning = Commissioning(wanted_s=commissioning_s, own=detector.book)
        self._short = commissioning_s < HOUR_S
        self._wanted = max(detector.window, detector.history)
        self._last_s: float | None = None
        self._present: dict[str, str] = {}

    async def step(self, at_s: float) -> Judged:
        """Judge every container at `at_s`.

        Raises:
            NatworkError: the source has no answer; the next step may have one.
        """
        wanted = round(self._commissioning.wanted_s / self._step_s)
        behind = wanted if self._last_s is None else round((at_s - self._last_s) / self._step_s)
        length = min(max(self._wanted, behind + 1), _MOST_SAMPLES)
        observation = await self._observe(at_s, length)
        self._last_s = at_s
        window = observation.window
        learnt = self._commissioning.observe(window)
        rows = self._rows(observation) if window.containers else ()
        gone = [name for name in self._present if name not in window.containers]
        rows += tuple(self._unjudged(at_s, name, self._present[name], "it is gone") for name in gone)
        self._present = dict(zip(window.containers, window.services, strict=True))
        everywhere = tuple(_told(r.metric, r.text) for r in observation.degraded if not r.container)
        notes = tuple(_told(r.container, r.metric, r.text) for r in observation.notes)
        if not window.containers:
            everywhere += ("the server names no container",)
        return Judged(at_s=at_s, rows=rows, learnt=learnt, degraded=everywhere, notes=notes)

    def _rows(self, observation: Observation) -> tuple[Row, ...]:
        window = observation.window
        references = self._commissioning.book.references(window.services)
        scores = self._detector.score(window.values[:, -self._wanted :], references)
        said: dict[str, list[str]] = {}
        for remark in observation.degraded:
            said.setdefault(remark.container, []).append(_told(remark.metric, remark.text))
        rows = []
        for i, (name, service) in enumerate(zip(window.containers, window.services, strict=True)):
            reasons = [*said.get("", ()), *said.get(name, ())]
            measured = {str(m) for m, x in zip(METRICS, window.values[i, -1], strict=True) if not np.isnan(x)}
            unknown = sorted(measured.intersection(self._commissioning.unprofiled(service)))
            if not scores.scored[i]:
                reasons = reasons or ["nothing was measured"]
            elif unknown:
                reasons.append(f"not judged by {', '.join(unknown)}: too little was seen of it in commissioning")
            # What is far from the fleet is not therefore anomalous: before its first dozen samples nobody can tell.
            cold = self._commissioning.basis(service) is Basis.FLEET
            if not scores.scored[i] or len(unknown) == len(measured) or cold:
                rows.append(self._unjudged(window.end_s, name, service, *reasons, *self._basis_reasons(service)))
                continue
            kind = STAGE_2_CLASSES[scores.kinds[i]] if scores.flagged[i] else None
            rows.append(
                Row(
                    at_s=window.end_s,
                    container=name,
                    service=service,
                    score=float(scores.p_anomalous[i]),
                    anomalous=kind is not None and kind is not AnomalyKind.FALSE_POSITIVE,
                    type=None if kind is None else str(kind),
                    confidence=float(scores.confidence[i]),
                    drivers=drivers(scores.deviations[i], scores.contributions[i]) if kind is not None else (),
                    profile=self._commissioning.basis(service),
                    profile_s=self._commissioning.measured_s(service),
                    degraded=(*reasons, *self._basis_reasons(service)),
                )
            )
        return tuple(rows)

    def _basis_reasons(self, service: str) -> tuple[str, ...]:
        basis, seconds = self._commissioning.basis(service), self._commissioning.measured_s(service)
        wanted = self._commissioning.wanted_s
        if basis is Basis.OWN:
            return (f"profile learnt from {seconds:g} s, not from an hour",) if self._short else ()
        if basis is Basis.PROVISIONAL:
            return (f"commissioning: provisional profile, {seconds:g} s of {wanted:g} s",)
        if basis is Basis.MODEL:
            return (f"commissioning: the model's profile of a service of this name, {seconds:g} s of {wanted:g} s",)
        return (f"cold start: no profile yet, {seconds:g} s of {wanted:g} s",)

    def _unjudged(self, at_s: float, container: str, service: str, *reasons: str) -> Row:
        return Row(
            at_s=at_s,
            container=container,
            service=service,
            score=None,
            anomalous=None,
            type=None,
            confidence=None,
            drivers=(),
            profile=self._commissioning.basis(service),
            profile_s=self._commissioning.measured_s(service),
            degraded=tuple(reasons),
        )


def watch(config: Config, detector: Detector, options: WatchOptions, *, model: str) -> None:
    """Follow the server of `config.prometheus`, printing rows, until the options say to end or the user interrupts.

    `loop.step_s` is the step. One bad answer of the server is told and outlived; that none came at all is an error.

    Raises:
        PreconditionError: with `once`, nothing could be judged; or there is no server.
        NatworkError: as `PrometheusTelemetry`, with `once` or when no step succeeded.
    """
    from natwork_ray.backends import prometheus_telemetry

    telemetry = prometheus_telemetry(config)
    try:
        asyncio.run(_followed(telemetry, config, detector, options, model))
    except KeyboardInterrupt:
        talk.print("interrupted")
    finally:
        telemetry.close()


async def _followed(
    telemetry: PrometheusTelemetry, config: Config, detector: Detector, options: WatchOptions, model: str
) -> None:
    step_s = config.loop.step_s
    looking = Watch(
        lambda at_s, length: telemetry.observation(end_s=at_s, length=length),
        detector,
        commissioning_s=options.commissioning_s,
        step_s=step_s,
    )
    if options.once:
        show_once(await looking.step(time.time()), options, model)
        return
    page = Page(as_json=options.as_json)
    page.begin(config, options, model)
    began = time.time()
    failure: NatworkError | None = None
    at_s = began
    try:
        while True:
            try:
                page.judged(await looking.step(at_s))
            except NatworkError as error:
                failure = error
                page.failed(at_s, error)
            at_s += step_s
            late = max(0, int((time.time() - at_s) / step_s))
            if late:
                page.skipped(at_s, late)
                at_s += late * step_s
            if options.for_s is not None and at_s > began + options.for_s:
                break
            await asyncio.sleep(max(0.0, at_s - time.time()))
    finally:
        page.end()
    if failure is not None and not page.steps:
        raise failure


def _told(*parts: str) -> str:
    return ": ".join(part for part in parts if part)
