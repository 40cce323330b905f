"""What goes through the anomaly door: windows in, verdicts out, as JSON or as raw float32 (docs/http.md).

Everything here is strict: what no measurement can be, a window that is too short, or a body that does not have the
length it says, is refused with its place. Raw input is what large batches travel as; parsing as much JSON costs more
than the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError

from natwork_ray.domain.anomaly import STAGE_2_CLASSES, AnomalyKind, Driver
from natwork_ray.domain.telemetry import METRICS, N_METRICS
from natwork_ray.domain.values import encode, value
from natwork_ray.errors import InputError
from natwork_ray.profiling.model_card import ModelCard
from natwork_ray.profiling.profile import REFERENCE_WIDTH, Floats, ProfileBook, check_references
from natwork_ray.profiling.recent_samples import Recent
from natwork_ray.profiling.verdicts import Scores, drivers
from serve_apps.problems import input_error

PREFIX = "/api/v1/anomaly"
MAX_WINDOWS = 65_536
MAX_SAMPLES = 4096  # per window
MAX_CONTAINERS = 20_000  # whose newest samples come in one request
MAX_PROFILES = 4096
RAW = "application/octet-stream"
JSON = "application/json"
_LE = np.dtype("<f4")


class Detector(Protocol):
    """What the door needs of `natwork_ray.profiling.detecting.Detector`."""

    @property
    def window(self) -> int:
        """The fewest samples per window that it takes."""
        ...

    @property
    def history(self) -> int:
        """The samples per window that it makes use of, where it gets so many."""
        ...

    def score(self, values: Floats, references: Floats) -> Scores:
        """Scores of values (N, T, 12) against reference rows (N, P)."""
        ...


@value
class ModelInfo:
    """The model behind the door: its digest, the shortest window it takes, how much it makes use of, and its card.

    `reference_width` is P, the figures in a reference row.
    """

    sha256: str
    window: int
    history: int
    reference_width: int = REFERENCE_WIDTH
    card: ModelCard


def rows_of(profiles: Sequence[Sequence[float] | Floats]) -> Floats:
    """Profiles as rows (R, P).

    Raises:
        InputError: a figure is out of range.
    """
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused
        table = np.array(profiles, dtype=np.float32)
    check_references(table, len(profiles))
    return table


@dataclass(frozen=True, eq=False)
class Served:
    """A version of the detector with what the door has to know of it. `book`: profiles that came with it."""

    detector: Detector
    info: ModelInfo
    book: ProfileBook = field(default_factory=ProfileBook)

    @cached_property
    def reference(self) -> Floats:
        """(P,) of the fleet-wide default profile, for cold starts."""
        return np.array(self.info.card.fleet.reference, dtype=np.float32)

    @cached_property
    def _rows(self) -> dict[str, tuple[float, ...]]:
        return {profile.service: profile.reference for profile in self.book.profiles}

    def references(
        self, services: Sequence[str], given: Mapping[str, Sequence[float]]
    ) -> tuple[Floats, NDArray[np.bool_]]:
        """Reference rows (N, P), and (N,) where it is a cold start.

        What was given for a service counts, else the profile that came with the model, else the fleet-wide default.

        Raises:
            InputError: a figure of what was given is out of range.
        """
        names = dict.fromkeys(services)
        known = {name: given.get(name, self._rows.get(name)) for name in names}
        table = rows_of([self.reference if row is None else row for row in known.values()])
        place = {name: i for i, name in enumerate(known)}
        rows = np.fromiter((place[s] for s in services), dtype=np.intp, count=len(services))
        cold = np.array([row is None for row in known.values()], dtype=bool)
        return table[rows], cold[rows]


Sample = Annotated[
    tuple[Annotated[float, Field(ge=0, le=float(np.finfo(np.float32).max))] | None, ...],
    Field(min_length=N_METRICS, max_length=N_METRICS),
]
Reference = Annotated[tuple[float, ...], Field(min_length=REFERENCE_WIDTH, max_length=REFERENCE_WIDTH)]
Profiles = Annotated[dict[str, Reference], Field(max_length=MAX_PROFILES)]
Label = Annotated[str, Field(max_length=253, pattern=r"^[^\x00-\x1f\x7f]*$")]


@value
class Window:
    """The last T samples of one container, oldest first, SI units, in the order of the card's `metrics`.

    T is at least the model's `window` and the same for all windows of a request.
    """

    container: Label
    service: Label = ""
    values: Annotated[tuple[Sample, ...], Field(min_length=1, max_length=MAX_SAMPLES)]


@value
class VerdictRequest:
    """Windows to judge, and the profiles of their services.

    A profile is the row of figures that `natwork_ray.profiling.profile.ProfileBook.references` gives for a service.
    Without one, the profile that the model brought of that service counts, else the fleet-wide default.
    """

    windows: Annotated[tuple[Window, ...], Field(min_length=1, max_length=MAX_WINDOWS)]
    profiles: Profiles = field(default_factory=dict)


@value
class WindowVerdict:
    """What the two stages say of one window.

    Attributes:
        judged: false when the newest sample is missing altogether; then the next three are null.
        p_anomalous: stage 1, probability of "anomalous", 0 to 1.
        kind: stage 2's class; `false_positive` (normal) where stage 1 did not flag.
        confidence: probability of that class, 0 to 1.
        flagged: stage 1 reached its threshold, with evidence in the newest sample.
        drivers: the metrics of a flagged window that stand out most, farthest first.
        cold_start: the fleet-wide default profile stood in for the service's own.
    """

    container: str
    service: str
    judged: bool
    p_anomalous: float | None
    kind: AnomalyKind | None
    confidence: float | None
    flagged: bool
    drivers: tuple[Driver, ...]
    cold_start: bool


@value
class VerdictAnswer:
    """One verdict per window, in the order sent; `model` is the digest of the model that gave them."""

    model: str
    verdicts: tuple[WindowVerdict, ...]


@value
class NewestSample:
    """The newest sample of one container, in the order of the card's `metrics`."""

    container: Label
    service: Label = ""
    values: Sample


@value
class SamplesRequest:
    """The samples of one moment: `at_s` in seconds, on one clock for all requests.

    `profiles` as in `VerdictRequest`.
    """

    at_s: Annotated[float, Field(ge=0, le=1e12)]
    samples: Annotated[tuple[NewestSample, ...], Field(min_length=1, max_length=MAX_CONTAINERS)]
    profiles: Profiles = field(default_factory=dict)

    @cached_property
    def values(self) -> Floats:
        """(N, 12), NaN where nothing was measured."""
        return np.array([s.values for s in self.samples], dtype=np.float32)


@value
class SampleVerdict(WindowVerdict):
    """A verdict, and how many of the samples that the model looks at (`of`) are known to it (`history`)."""

    history: int
    of: int


@value
class SamplesAnswer:
    """One verdict per sample, in the order sent; `model` is the digest of the model that gave them."""

    model: str
    at_s: float
    verdicts: tuple[SampleVerdict, ...]


@dataclass(frozen=True, eq=False)
class Batch:
    """Windows to judge, checked: values (N, T, 12), reference rows (N, P), (N,) cold starts, and whose they are."""

    values: Floats  # (N, T, 12)
    references: Floats  # (N, P)
    cold: NDArray[np.bool_]  # (N,)
    names: tuple[tuple[str, str], ...]


REQUEST: TypeAdapter[VerdictRequest] = TypeAdapter(VerdictRequest)
SAMPLES: TypeAdapter[SamplesRequest] = TypeAdapter(SamplesRequest)


def parse_json(body: bytes, served: Served) -> Batch:
    """A batch from JSON.

    Raises:
        InputError: malformed, of the wrong shape, infinite or negative.
    """
    try:
        request = REQUEST.validate_json(body, strict=True)
    except ValidationError as error:
        raise input_error(error, "body") from error
    windows = request.windows
    t = served.info.window
    for i, window in enumerate(windows):
        if len(window.values) < t or len(window.values) != len(windows[0].values):
            raise _wrong_length(f"windows.{i}.values has {len(window.values)} samples", t)
    # numpy reads None as NaN.
    values = np.array([w.values for w in windows], dtype=np.float32)
    references, cold = served.references([w.service for w in windows], request.profiles)
    return checked(values, references, cold, tuple((w.container, w.service) for w in windows))


def parse_raw(body: bytes, served: Served, *, n: int | None, t: int | None, profiles: int) -> Batch:
    """A batch from little-endian float32, with `profiles` reference rows and who they belong to, where there are any.

    Raises:
        InputError: `n` or `t` missing, a length that does not fit them, infinite or negative, or a profile that is not
            there.
    """
    if n is None or t is None:
        raise InputError("query: raw input needs n and t", hint="send ?n=<windows>&t=<samples per window>")
    if t < served.info.window:
        raise _wrong_length(f"query.t is {t}", served.info.window)
    samples, figures = n * t * N_METRICS, profiles * REFERENCE_WIDTH
    expected = _LE.itemsize * (samples + figures + (n if profiles else 0))
    if len(body) != expected:
        raise InputError(
            f"body: {len(body)} bytes, expected {expected}",
            hint=f"little-endian float32: ({n}, {t}, {N_METRICS}) values"
            + (f", ({profiles}, {REFERENCE_WIDTH}) profiles, then {n} int32: which is whose" if profiles else ""),
        )
    values = np.frombuffer(body, dtype=_LE, count=samples).astype(np.float32, copy=False).reshape(n, t, N_METRICS)
    if not profiles:
        references = np.broadcast_to(served.reference, (n, REFERENCE_WIDTH))
        return checked(values, references, np.ones(n, dtype=bool), (("", ""),) * n)
    table = np.frombuffer(body, dtype=_LE, count=figures, offset=4 * samples).reshape(profiles, REFERENCE_WIDTH)
    check_references(table, profiles)
    whose = np.frombuffer(body, dtype=np.dtype("<i4"), count=n, offset=4 * (samples + figures))
    if whose.min() < -1 or whose.max() >= profiles:
        raise InputError(
            f"body: a window belongs to profile {int(whose.max())} of {profiles}",
            hint=f"0 to {profiles - 1}, or -1 for a window whose service has none",
        )
    rows = np.concatenate([table.astype(np.float32, copy=False), served.reference[None]])
    return checked(values, rows[whose], whose == -1, (("", ""),) * n)


def parse_samples(body: bytes) -> SamplesRequest:
    """Newest samples from JSON.

    Raises:
        InputError: malformed, infinite or negative, or two samples of one container.
    """
    try:
        sent = SAMPLES.validate_json(body, strict=True)
    except ValidationError as error:
        raise input_error(error, "body") from error
    if sent.profiles:  # before anything is remembered
        rows_of(list(sent.profiles.values()))
    return sent


def windows_of_samples(sent: SamplesRequest, recent: Recent, served: Served) -> Batch:
    """The windows that end with the samples sent."""
    references, cold = served.references([s.service for s in sent.samples], sent.profiles)
    return checked(recent.windows, references, cold, tuple((s.container, s.service) for s in sent.samples))


def checked(
    values: Floats,
    references: Floats,
    cold: NDArray[np.bool_],
    names: tuple[tuple[str, str], ...],
) -> Batch:
    """The batch.

    Raises:
        InputError: a sample is infinite or negative; the message names the place.
    """
    bad = (values < 0) | np.isinf(values)  # NaN is neither
    if bad.any():
        i, j, k = (int(x) for x in np.argwhere(bad)[0])
        raise InputError(
            f"window {i}, sample {j}, {METRICS[k]}: {float(values[i, j, k])!r}",
            hint="metrics are finite and not negative; send NaN (raw) or null (JSON) where nothing was measured",
        )
    # One spelling of NaN: a signalling one, which only raw input can hold, would make arithmetic warn.
    values = np.where(np.isnan(values), np.float32(np.nan), values)
    return Batch(values, references, cold, names)


def raw_answer(scores: Scores) -> bytes:
    """(N, 3): p_anomalous, kind, confidence; NaN where there is no verdict."""
    out = np.stack([scores.p_anomalous, scores.kinds, scores.confidence], axis=1).astype(_LE)
    out[~scores.scored] = np.nan
    return out.tobytes()


def json_answer(scores: Scores, batch: Batch, model: str) -> bytes:
    """`VerdictAnswer` of the model with that digest."""
    return encode(VerdictAnswer(model=model, verdicts=verdicts(scores, batch)))


def verdicts(scores: Scores, batch: Batch) -> tuple[WindowVerdict, ...]:
    """Scores as verdicts, in the order of the batch."""
    found = []
    for i, (container, service) in enumerate(batch.names):
        judged, flagged = bool(scores.scored[i]), bool(scores.flagged[i])
        found.append(
            WindowVerdict(
                container=container,
                service=service,
                judged=judged,
                p_anomalous=float(scores.p_anomalous[i]) if judged else None,
                kind=STAGE_2_CLASSES[scores.kinds[i]] if judged else None,
                confidence=float(scores.confidence[i]) if judged else None,
                flagged=flagged,
                drivers=drivers(scores.deviations[i], scores.contributions[i]) if flagged else (),
                cold_start=bool(batch.cold[i]),
            )
        )
    return tuple(found)


def samples_answer(scores: Scores, batch: Batch, recent: Recent, at_s: float, model: str) -> bytes:
    """`SamplesAnswer` of the model with that digest."""
    of = recent.windows.shape[1]
    told = tuple(
        SampleVerdict(**vars(verdict), history=int(known), of=of)
        for verdict, known in zip(verdicts(scores, batch), recent.history, strict=True)
    )
    return encode(SamplesAnswer(model=model, at_s=at_s, verdicts=told))


def _wrong_length(what: str, window: int) -> InputError:
    return InputError(
        f"{what}, the model takes {window} or more", hint=f"send windows of one length, see {PREFIX}/model"
    )
