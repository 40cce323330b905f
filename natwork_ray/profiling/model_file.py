"""A pair of networks as one file: safetensors with a JSON card. Never a pickle.

Both networks travel together, because stage 2 and the threshold belong to the stage 1 they were trained with; a store
that swaps one file can never mix two versions. Tensors are named `light.<parameter>` and `seven.<parameter>`.

Loading is strict and bounded: size, tensor names, types, shapes and finiteness are checked before a network sees them.
Anything odd is an `InputError`.
"""

from __future__ import annotations

import hashlib
import json

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from natwork_ray.domain.values import decode, encode
from natwork_ray.errors import InputError
from natwork_ray.profiling.bounds import MAX_MODEL_BYTES
from natwork_ray.profiling.detector import TwoStageDetector
from natwork_ray.profiling.model_card import ModelCard
from natwork_ray.profiling.networks import LightCnn, SevenClassCnn

_CARD = "natwork"
_HINT = "it must be a file that `natwork train profiler` wrote"


def dumps(detector: TwoStageDetector) -> bytes:
    """The detector as bytes for a ModelStore."""
    tensors = {
        f"{part}.{name}": tensor.contiguous()
        for part, network in (("light", detector.light), ("seven", detector.seven))
        for name, tensor in network.state_dict().items()
    }
    data: bytes = save(tensors, metadata={_CARD: encode(detector.card).decode()})
    return data


def loads(data: bytes) -> TwoStageDetector:
    """The detector in these bytes.

    Raises:
        InputError: anything but what `dumps` wrote.
    """
    if len(data) > MAX_MODEL_BYTES:
        raise InputError(f"model of {len(data)} bytes exceeds {MAX_MODEL_BYTES}", hint=_HINT)
    card = _card(data)
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"not a safetensors model: {error}", hint=_HINT) from error
    light, seven = LightCnn(), SevenClassCnn()
    expected = {f"{part}.{name}" for part, n in (("light", light), ("seven", seven)) for name in n.state_dict()}
    if set(tensors) != expected:
        odd = sorted(set(tensors) ^ expected)[:3]
        raise InputError(f"model has missing or unknown tensors: {', '.join(odd)}"[:300], hint=_HINT)
    _fill(light, "light", tensors)
    _fill(seven, "seven", tensors)
    return TwoStageDetector(light, seven, card)


def digest(data: bytes) -> str:
    """SHA-256 of a model's bytes, hex: which model said so."""
    return hashlib.sha256(data).hexdigest()


def _card(data: bytes) -> ModelCard:
    # The library returns tensors only, so the header is read here: 8 bytes of length, then JSON.
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise InputError("model file is cut off in its header", hint=_HINT)
    try:
        header = json.loads(data[8 : 8 + length])
        card = header["__metadata__"][_CARD]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError("model file has no card", hint=_HINT) from error
    if not isinstance(card, str):
        raise InputError("model file's card is not text", hint=_HINT)
    return decode(ModelCard, card)


def _fill(network: nn.Module, part: str, tensors: dict[str, Tensor]) -> None:
    own = network.state_dict()
    for name, target in own.items():
        given = tensors[f"{part}.{name}"]
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
