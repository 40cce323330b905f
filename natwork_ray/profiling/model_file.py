"""A detector as one file: safetensors with a JSON card. Never a pickle.

Both stages travel together, because stage 2 and the threshold belong to the stage 1 they were trained with; a store
that swaps one file can never mix two versions. The card says which detector it is:

- `best`: `trees` (LightGBM's text, as bytes) and `naming.<array>`;
- `annex-a`: `light.<parameter>` and `seven.<parameter>`;

and both hold `profiles`, the profiles of services that the detector knows, as JSON bytes.

Loading is strict and bounded: size, checksum (`domain.checksums`), names, types, shapes and finiteness are checked, and
every tree of a text before LightGBM sees it. Anything odd is an `InputError`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from natwork_ray.domain.checksums import ENTRY, NO_CHECKSUM, verify_checksum, with_checksum, without_checksum
from natwork_ray.domain.values import decode, encode
from natwork_ray.errors import InputError
from natwork_ray.profiling.bounds import MAX_MODEL_BYTES
from natwork_ray.profiling.detector import TwoStageDetector
from natwork_ray.profiling.model_card import ModelCard
from natwork_ray.profiling.naming import Namer
from natwork_ray.profiling.profile import ProfileBook, ServiceProfile
from natwork_ray.profiling.stages import StageOne, StageTwo, TreeStage

if TYPE_CHECKING:
    from torch import nn

Arrays = Mapping[str, NDArray[np.generic]]

_PROFILES = "profiles"
_TREES = "trees"
_NAMING = "naming."
_HINT = "it must be a file that `natwork train profiler` wrote"


def dumps(detector: TwoStageDetector) -> bytes:
    """The detector as bytes for a ModelStore.

    Raises:
        InputError: a detector without a stage 2, which is made for measuring, not for keeping.
    """
    arrays = dict(_stages_as_arrays(detector.stage_1, detector.stage_2))
    # Text travels as an array of bytes: a second entry in the metadata would be written in a random order.
    arrays[_PROFILES] = _as_bytes(ProfileBook(profiles=detector.book.profiles).to_json())
    data: bytes = save(arrays, metadata={ENTRY: NO_CHECKSUM + encode(detector.card).decode()})
    return with_checksum(data)


def loads(data: bytes) -> TwoStageDetector:
    """The detector in these bytes.

    Raises:
        InputError: anything but what `dumps` wrote, bit for bit.
    """
    if len(data) > MAX_MODEL_BYTES:
        raise InputError(f"model of {len(data)} bytes exceeds {MAX_MODEL_BYTES}", hint=_HINT)
    verify_checksum(data)
    card = read_card(data)
    try:
        arrays = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"not a safetensors model: {error}", hint=_HINT) from error
    profiles = _profiles(arrays)
    stages = _best if card.settings.detector == "best" else _annex_a
    stage_1, stage_2 = stages(arrays, card)
    return TwoStageDetector(stage_1, stage_2, card, profiles)


def digest(data: bytes) -> str:
    """SHA-256 of a model's bytes, hex: which model said so."""
    return hashlib.sha256(data).hexdigest()


def _stages_as_arrays(stage_1: StageOne, stage_2: StageTwo) -> Arrays:
    if isinstance(stage_1, TreeStage) and isinstance(stage_2, Namer):
        naming = {_NAMING + name: array for name, array in stage_2.tensors().items()}
        return {_TREES: _as_bytes(stage_1.text.encode()), **naming}
    from natwork_ray.profiling.annex_a import LightStage, SevenClassStage

    if isinstance(stage_1, LightStage) and isinstance(stage_2, SevenClassStage):
        return {
            f"{part}.{name}": tensor.contiguous().numpy()
            for part, network in (("light", stage_1.network), ("seven", stage_2.network))
            for name, tensor in network.state_dict().items()
        }
    raise InputError("a detector without a stage 2 cannot be kept", hint="train it with `naming`")


def _best(arrays: Arrays, card: ModelCard) -> tuple[StageOne, StageTwo]:
    naming = {name.removeprefix(_NAMING): array for name, array in arrays.items() if name.startswith(_NAMING)}
    _check_names(set(arrays), {_PROFILES, _TREES, *(_NAMING + name for name in naming)})
    namer = Namer.from_tensors(naming)
    _check_names(set(naming), set(namer.tensors()))
    return TreeStage(_text(arrays[_TREES], _TREES), card.calibration), namer


def _annex_a(arrays: Arrays, card: ModelCard) -> tuple[StageOne, StageTwo]:
    # Torch costs seconds and 200 MiB, and the default detector does not need it.
    from natwork_ray.profiling.annex_a import LightStage, SevenClassStage
    from natwork_ray.profiling.networks import LightCnn, SevenClassCnn

    light, seven = LightCnn(), SevenClassCnn()
    parts = (("light", light), ("seven", seven))
    _check_names(set(arrays), {_PROFILES, *(f"{part}.{name}" for part, n in parts for name in n.state_dict())})
    _fill(light, "light", arrays)
    _fill(seven, "seven", arrays)
    settings = card.settings
    return LightStage(light), SevenClassStage(seven, window=settings.window, reject_below=settings.reject_below)


def _check_names(given: set[str], expected: set[str]) -> None:
    if given != expected:
        raise InputError(
            f"model has missing or unknown arrays: {', '.join(sorted(given ^ expected)[:3])}"[:300], hint=_HINT
        )


def _profiles(arrays: Arrays) -> tuple[ServiceProfile, ...]:
    if _PROFILES not in arrays:
        raise InputError("model has no profiles", hint=_HINT)
    return ProfileBook.from_json(_text(arrays[_PROFILES], _PROFILES).encode()).profiles


def _as_bytes(text: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(text, dtype=np.uint8)


def _text(array: NDArray[np.generic], name: str) -> str:
    if array.dtype != np.uint8 or array.ndim != 1:
        raise InputError(f"model's {name} are {array.dtype} {array.shape}, not bytes", hint=_HINT)
    try:
        return array.tobytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"model's {name} are not text: {error}", hint=_HINT) from error


def read_card(data: bytes) -> ModelCard:
    """What a model file says of itself, without making a detector of it and without checking its checksum.

    Raises:
        InputError: no card, or a damaged one.
    """
    # The library returns arrays only, so the header is read here: 8 bytes of length, then JSON.
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise InputError("model file is cut off in its header", hint=_HINT)
    try:
        header = json.loads(data[8 : 8 + length])
        card = header["__metadata__"][ENTRY]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError("model file has no card", hint=_HINT) from error
    parsed: ModelCard = decode(ModelCard, without_checksum(card))
    return parsed


def _fill(network: nn.Module, part: str, arrays: Arrays) -> None:
    import torch

    own = network.state_dict()
    for name, target in own.items():
        array = arrays[f"{part}.{name}"]
        given = torch.from_numpy(array.copy())
        if given.shape != target.shape or given.dtype != target.dtype:
            raise InputError(
                f"model tensor {part}.{name} is {given.dtype} {tuple(given.shape)}, "
                f"not {target.dtype} {tuple(target.shape)}",
                hint=_HINT,
            )
        if not torch.isfinite(given).all() or (name.endswith("running_var") and bool((given < 0).any())):
            raise InputError(f"model tensor {part}.{name} holds values that no training gives", hint=_HINT)
        own[name] = given
    network.load_state_dict(own)
