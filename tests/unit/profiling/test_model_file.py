"""Model files: round trip, and nothing but InputError from whatever else is loaded."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from natwork_ray.domain.values import encode
from natwork_ray.errors import InputError
from natwork_ray.profiling.bounds import MAX_MODEL_BYTES
from natwork_ray.profiling.detector import TwoStageDetector
from natwork_ray.profiling.model_card import TrainingSettings
from natwork_ray.profiling.model_file import digest, dumps, loads


@pytest.fixture(scope="module")
def data(detector: TwoStageDetector) -> bytes:
    return dumps(detector)


def test_round_trip(detector: TwoStageDetector, data: bytes) -> None:
    again = loads(data)
    assert again.card == detector.card
    rng = np.random.default_rng(0)
    values = rng.uniform(0, 1e6, (20, 6, 12)).astype(np.float32)
    centre, scale = np.full((20, 12), 3.0, np.float32), np.ones((20, 12), np.float32)
    first, second = detector.score(values, centre, scale), again.score(values, centre, scale)
    assert (first.p_anomalous == second.p_anomalous).all()
    assert (first.kinds == second.kinds).all()
    assert dumps(again) == data
    assert len(digest(data)) == 64


@settings(max_examples=100)
@given(st.data())
def test_damaged_files(data: bytes, draw: st.DataObject) -> None:
    """Flipped, cut off or grown: either still a model in range, or an InputError."""
    broken = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 4))):
        # Half of the damage goes into the header, where the parsing is.
        place = draw.draw(st.integers(0, 4000) | st.integers(0, len(data) - 1))
        broken[place] ^= draw.draw(st.integers(1, 255))
    cut = draw.draw(st.none() | st.integers(0, len(data)))
    try:
        loads(bytes(broken[:cut]) + draw.draw(st.binary(max_size=8)))
    except InputError:
        return


@given(st.binary(max_size=200))
def test_random_bytes(noise: bytes) -> None:
    with pytest.raises(InputError):
        loads(noise)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5), lambda s: st.lists(s) | st.dictionaries(st.text(max_size=5), s)
    )
)
def test_random_headers(header: object) -> None:
    text = json.dumps({"__metadata__": {"natwork": header}}).encode()
    with pytest.raises(InputError):
        loads(len(text).to_bytes(8, "little") + text)


def test_deeply_nested_header() -> None:
    text = b"[" * 200_000
    with pytest.raises(InputError):
        loads(len(text).to_bytes(8, "little") + text)


def test_too_large() -> None:
    with pytest.raises(InputError, match="exceeds"):
        loads(b"\0" * (MAX_MODEL_BYTES + 1))


def test_tensors_that_no_training_gives(detector: TwoStageDetector, data: bytes) -> None:
    card = {"natwork": encode(detector.card).decode()}

    def altered(name: str, tensor: torch.Tensor | None) -> bytes:
        tensors = load(data)
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
        result: bytes = save(tensors, metadata=card)
        return result

    for name, tensor, said in (
        ("light.dense2.bias", None, "missing or unknown"),
        ("light.extra", torch.zeros(1), "missing or unknown"),
        ("light.dense2.bias", torch.zeros(3), "not torch.float32 \\(2,\\)"),
        ("light.dense2.bias", torch.zeros(2, dtype=torch.float64), "float64"),
        ("seven.dense2.bias", torch.full((7,), torch.nan), "no training"),
        ("light.norm.running_var", -torch.ones(16), "no training"),
    ):
        with pytest.raises(InputError, match=said):
            loads(altered(name, tensor))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"natwork-profiler/1"', '"natwork-profiler/9"'),
        ('"high_cpu"', '"high_cpv"'),
        ('"window":6', '"window":1'),
        ('"threshold":0.', '"threshold":7.'),
        ('"runs":', '"more":1,"runs":'),
    ],
)
def test_cards_out_of_range(detector: TwoStageDetector, data: bytes, old: str, new: str) -> None:
    text = encode(detector.card).decode()
    assert old in text
    broken = save(load(data), metadata={"natwork": text.replace(old, new, 1)})
    with pytest.raises(InputError):
        loads(broken)


def test_settings_out_of_range() -> None:
    with pytest.raises(InputError, match="epochs"):
        TrainingSettings(epochs=0)
    with pytest.raises(InputError, match="learning_rate"):
        TrainingSettings(learning_rate=float("nan"))
