"""A forecaster as one file: safetensors with a JSON card. Never a pickle.

Arrays are tensors under their own names; boosters are LightGBM text, compressed, as tensors of bytes named
`trees.<target>.<horizon>.<expected|low|high>`; the LSTM, where there is one, is `lstm.<parameter>`.

Loading is strict and bounded: size, checksum (`domain.checksums`), names, shapes, types, ranges and finiteness are
checked, compressed text is unpacked up to a limit, and trees are checked before LightGBM sees them. Anything odd is an
`InputError`.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from natwork_ray.domain.checksums import ENTRY, NO_CHECKSUM, verify_checksum, with_checksum, without_checksum
from natwork_ray.domain.values import decode, encode
from natwork_ray.errors import InputError, PreconditionError
from natwork_ray.forecasting.boosted import Boosters
from natwork_ray.forecasting.bounds import MAX_MODEL_BYTES, MAX_SERVICES, PACKAGED_FORECASTER
from natwork_ray.forecasting.calibration import Calibration
from natwork_ray.forecasting.card import ForecasterCard
from natwork_ray.forecasting.choice import LSTM, MODELS
from natwork_ray.forecasting.conformal import LEVELS
from natwork_ray.forecasting.features import feature_names
from natwork_ray.forecasting.forecaster import Forecaster
from natwork_ray.forecasting.lstm_model import LstmChange, channels
from natwork_ray.forecasting.maps import LAGS, SIGNED, WorkloadMaps
from natwork_ray.forecasting.references import CHARACTER, WIDTH, References

_HINT = "it must be a file that `natwork train forecaster` wrote"
_PARTS = ("expected", "low", "high")
_MAX_TEXT = 8 * 2**20
_METRICS = 12

Array = NDArray[np.generic]


def dumps(forecaster: Forecaster) -> bytes:
    """The forecaster as bytes for a ModelStore."""
    references, calibration, maps = forecaster.references, forecaster.calibration, forecaster.maps
    tensors: dict[str, Array] = {
        "references.table": references.table,
        "references.reach": references.reach,
        "references.fleet": references.fleet,
        "references.fleet_reach": references.fleet_reach,
        "calibration.model": calibration.model.astype(np.int64),
        "calibration.factor": calibration.factor,
        "calibration.periods": calibration.periods.astype(np.int64),
        "calibration.tables": calibration.tables,
        "calibration.surprise": calibration.surprise,
        "maps.level": maps.level,
        "maps.change": maps.change,
        "maps.signatures": maps.signatures,
    }
    for (k, j), boosters in forecaster.boosters.items():
        for part, text in zip(_PARTS, boosters.texts, strict=True):
            tensors[f"trees.{k}.{j}.{part}"] = np.frombuffer(zlib.compress(text.encode(), 9), dtype=np.uint8)
    if forecaster.lstm is not None:
        for name, tensor in forecaster.lstm.network.state_dict().items():
            tensors[f"lstm.{name}"] = tensor.numpy()
    # One entry: the library writes several in no particular order, and the same forecaster has the same bytes.
    header = {"card": encode(forecaster.card).decode(), "maps": list(maps.services)}
    contiguous = {name: np.require(tensor, requirements="C") for name, tensor in tensors.items()}
    data: bytes = save(contiguous, metadata={ENTRY: NO_CHECKSUM + json.dumps(header)})
    return with_checksum(data)


def loads(data: bytes) -> Forecaster:
    """The forecaster in these bytes.

    Raises:
        InputError: anything but what `dumps` wrote, bit for bit.
        PreconditionError: LightGBM, or torch where the file holds an LSTM, cannot be loaded.
    """
    if len(data) > MAX_MODEL_BYTES:
        raise InputError(f"forecaster of {len(data)} bytes exceeds {MAX_MODEL_BYTES}", hint=_HINT)
    verify_checksum(data)
    card, map_services = _metadata(data)
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"not a safetensors forecaster: {error}"[:300], hint=_HINT) from error
    box = _Box(tensors)
    settings = card.settings
    s, k, h = len(card.services), len(settings.metrics), len(settings.horizons)
    references = References(
        services=card.services,
        table=box.real("references.table", (s, _METRICS, WIDTH)),
        reach=box.real("references.reach", (s, k, h), low=np.nextafter(0, 1)),
        fleet=box.real("references.fleet", (_METRICS, WIDTH)),
        fleet_reach=box.real("references.fleet_reach", (k, h), low=np.nextafter(0, 1)),
    )
    if (references.table[..., 1 : CHARACTER.start] <= 0).any():
        raise InputError("forecaster's references hold a spread that is not positive", hint=_HINT)
    calibration = Calibration(
        model=box.whole("calibration.model", (s + 1, k, h), high=len(MODELS) - 1),
        factor=box.real("calibration.factor", (s + 1, k, h), low=0.0, high=1.0),
        periods=box.whole("calibration.periods", (s + 1, k), high=settings.window),
        tables=_rising(box.real("calibration.tables", (s + 1, k, h, len(LEVELS)))),
        surprise=_rising(box.real("calibration.surprise", (s + 1, k, len(LEVELS)))),
    )
    m = len(map_services)
    maps = WorkloadMaps(
        services=map_services,
        level=box.real("maps.level", (m, _METRICS, 4), missing=True),
        change=box.real("maps.change", (m, _METRICS, len(LAGS), 2), missing=True),
        signatures=box.real("maps.signatures", (len(SIGNED), _METRICS), missing=True),
    )
    if (maps.level[..., 3] <= 0).any():
        raise InputError("forecaster's maps hold a spread that is not positive", hint=_HINT)
    boosters = {}
    for place, metric in enumerate(settings.targets):
        for j in range(h):
            texts = tuple(box.text(f"trees.{place}.{j}.{part}") for part in _PARTS)
            boosters[place, j] = Boosters.of((texts[0], texts[1], texts[2]), feature_names(metric, settings.window))
    lstm = _lstm(box, card) if settings.lstm_epochs else None
    if lstm is None and (calibration.model == LSTM).any():
        raise InputError("forecaster chooses an LSTM that it does not hold", hint=_HINT)
    box.close()
    return Forecaster(card, references, boosters, calibration, lstm, maps)


def digest(data: bytes) -> str:
    """SHA-256 of a model's bytes, hex: which model said so."""
    return hashlib.sha256(data).hexdigest()


def read_forecaster(path: Path = PACKAGED_FORECASTER) -> tuple[Forecaster, str]:
    """The forecaster in a file (by default the one that comes with the package), and the SHA-256 of the file.

    Raises:
        PreconditionError: there is no such file, or a package it needs is missing.
        InputError: the file is damaged; the message names it.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_MODEL_BYTES + 1)
    except OSError as error:
        raise PreconditionError(
            f"cannot read the forecaster {path}: {error}", hint="`natwork train forecaster` makes one"
        ) from error
    try:
        return loads(data), digest(data)
    except InputError as error:
        raise InputError(f"the forecaster {path} is damaged: {error.what}", hint=error.hint) from error


def _metadata(data: bytes) -> tuple[ForecasterCard, tuple[str, ...]]:
    # The library returns tensors only, so the header is read here: 8 bytes of length, then JSON.
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise InputError("forecaster's file is cut off in its header", hint=_HINT)
    try:
        entry = json.loads(data[8 : 8 + length])["__metadata__"][ENTRY]
        header = json.loads(without_checksum(entry))
        card, services = header["card"], header["maps"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError("forecaster's file has no card", hint=_HINT) from error
    if not isinstance(card, str) or not isinstance(services, list) or not all(isinstance(n, str) for n in services):
        raise InputError("forecaster's card is not text", hint=_HINT)
    found: ForecasterCard = decode(ForecasterCard, card)
    if max(len(found.services), len(services)) > MAX_SERVICES or len(set(services)) != len(services):
        raise InputError(f"forecaster of {len(found.services)} services", hint=_HINT)
    return found, tuple(services)


def _rising(tables: NDArray[np.float64]) -> NDArray[np.float64]:
    if (np.diff(tables, axis=-1) < 0).any():
        raise InputError("forecaster's calibration is not in order", hint=_HINT)
    return tables


def _lstm(box: _Box, card: ForecasterCard) -> LstmChange:
    try:
        import torch

        from natwork_ray.forecasting.networks import LstmForecaster
    except ImportError as error:
        raise PreconditionError(f"torch cannot be loaded: {error}", hint="`pip install torch`") from error
    targets = card.settings.targets
    network = LstmForecaster(len(channels(targets)), len(card.settings.horizons))
    own = network.state_dict()
    for name, tensor in own.items():
        given = box.take(f"lstm.{name}")
        if given.shape != tuple(tensor.shape) or given.dtype != tensor.numpy().dtype or not np.isfinite(given).all():
            raise InputError(f"forecaster's tensor lstm.{name} is none that training gives", hint=_HINT)
        if name.endswith("running_var") and (given < 0).any():  # type: ignore[operator]
            raise InputError(f"forecaster's tensor lstm.{name} holds a negative variance", hint=_HINT)
        own[name] = torch.from_numpy(given.copy())
    network.load_state_dict(own)
    network.eval()
    return LstmChange(network, targets, card.settings.horizons)


class _Box:
    """Tensors by name; each is taken once, and none may be left."""

    def __init__(self, tensors: dict[str, Array]) -> None:
        self._tensors = dict(tensors)

    def take(self, name: str) -> Array:
        try:
            return self._tensors.pop(name)
        except KeyError:
            raise InputError(f"forecaster lacks the tensor {name}", hint=_HINT) from None

    def real(
        self,
        name: str,
        shape: tuple[int, ...],
        *,
        low: float = -np.inf,
        high: float = np.inf,
        missing: bool = False,
    ) -> NDArray[np.float64]:
        found = self.take(name)
        if found.dtype != np.float64 or found.shape != shape:
            raise InputError(f"forecaster's tensor {name} is {found.dtype} {found.shape}, not {shape}", hint=_HINT)
        values = np.asarray(found, dtype=np.float64)
        odd = np.isinf(values) | (values < low) | (values > high) | (np.isnan(values) & (not missing))
        if odd.any():
            raise InputError(f"forecaster's tensor {name} holds values that no training gives", hint=_HINT)
        return values

    def whole(self, name: str, shape: tuple[int, ...], *, high: int) -> NDArray[np.intp]:
        found = self.take(name)
        if found.dtype != np.int64 or found.shape != shape:
            raise InputError(f"forecaster's tensor {name} is {found.dtype} {found.shape}, not {shape}", hint=_HINT)
        values = np.asarray(found, dtype=np.intp)
        if ((values < 0) | (values > high)).any():
            raise InputError(f"forecaster's tensor {name} holds values that no training gives", hint=_HINT)
        return values

    def text(self, name: str) -> str:
        found = self.take(name)
        if found.dtype != np.uint8 or found.ndim != 1:
            raise InputError(f"forecaster's tensor {name} is no text", hint=_HINT)
        unpacking = zlib.decompressobj()
        try:
            # Bounded: a small file must not unpack into gigabytes.
            raw = unpacking.decompress(found.tobytes(), _MAX_TEXT)
            if not unpacking.eof or unpacking.unused_data:
                raise InputError(f"forecaster's tensor {name} is too long or cut off", hint=_HINT)
            return raw.decode("ascii")
        except (zlib.error, UnicodeDecodeError) as error:
            raise InputError(f"forecaster's tensor {name} is no text: {error}", hint=_HINT) from error

    def close(self) -> None:
        if self._tensors:
            odd = ", ".join(sorted(self._tensors)[:3])
            raise InputError(f"forecaster has unknown tensors: {odd}"[:300], hint=_HINT)
