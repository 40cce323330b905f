"""Model files: round trip, and nothing but InputError from whatever else is loaded."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from safetensors.torch import load, save

from natwork_ray.domain.checksums import ENTRY, NO_CHECKSUM, with_checksum
from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.domain.values import encode
from natwork_ray.errors import InputError
from natwork_ray.profiling.bounds import MAX_MODEL_BYTES
from natwork_ray.profiling.detector import TwoStageDetector
from natwork_ray.profiling.model_card import TrainingSettings
from natwork_ray.profiling.model_file import digest, dumps, loads, read_card
from natwork_ray.profiling.training import train
from natwork_ray.profiling.windows import commissioning_book


@pytest.fixture(scope="module")
def data(detector: TwoStageDetector) -> bytes:
    return dumps(detector)


@pytest.fixture(scope="module")
def best_data(best: TwoStageDetector) -> bytes:
    return dumps(best)


@pytest.mark.parametrize("which", ["best", "detector"])
def test_round_trip(which: str, request: pytest.FixtureRequest, runs: tuple[LabelledRun, ...]) -> None:
    detector: TwoStageDetector = request.getfixturevalue(which)
    data = dumps(detector)
    again = loads(data)
    assert again.card == detector.card
    rng = np.random.default_rng(0)
    values = rng.uniform(0, 1e6, (20, 30, 12)).astype(np.float32)
    references = commissioning_book(runs).references(("a", "b") * 10)
    first, second = detector.score(values, references), again.score(values, references)
    assert (first.p_anomalous == second.p_anomalous).all()
    assert (first.kinds == second.kinds).all()
    assert (first.contributions == second.contributions).all()
    assert dumps(again) == data
    assert len(digest(data)) == 64


@settings(max_examples=100)
@given(st.data())
def test_damaged_files(data: bytes, draw: st.DataObject) -> None:
    """Flipped, cut off or grown: refused, wherever the damage is."""
    broken = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 4))):
        # Half of the damage goes into the header, where the parsing is.
        place = draw.draw(st.integers(0, 4000) | st.integers(0, len(data) - 1))
        broken[place] ^= draw.draw(st.integers(1, 255))
    cut = draw.draw(st.none() | st.integers(0, len(data)))
    damaged = bytes(broken[:cut]) + draw.draw(st.binary(max_size=8))
    assume(damaged != data)
    with pytest.raises(InputError):
        loads(damaged)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["data", "best_data"]), st.data())
def test_a_single_flipped_bit_is_refused(request: pytest.FixtureRequest, which: str, draw: st.DataObject) -> None:
    """Also in a weight, where every value is one that training could have given."""
    data: bytes = request.getfixturevalue(which)
    broken = bytearray(data)
    broken[draw.draw(st.integers(0, len(data) - 1))] ^= 1 << draw.draw(st.integers(0, 7))
    with pytest.raises(InputError):
        loads(bytes(broken))


def test_a_file_without_a_checksum_is_refused(best: TwoStageDetector, best_data: bytes) -> None:
    with pytest.raises(InputError, match="no checksum") as caught:
        loads(save_arrays(load_arrays(best_data), metadata={ENTRY: encode(best.card).decode()}))
    assert "train it anew" in caught.value.hint


def test_the_card_is_read_whatever_the_checksum(detector: TwoStageDetector, data: bytes) -> None:
    assert read_card(data[:-1] + bytes([data[-1] ^ 1])) == detector.card
    for entry in (encode(detector.card).decode(), "", "sha256:"):
        with pytest.raises(InputError, match="no checksum"):
            read_card(save(load(data), metadata={ENTRY: entry}))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_trees_and_arrays(best_data: bytes, draw: st.DataObject) -> None:
    """The same for trees, which a compiled parser would read next: it never sees what is odd."""
    broken = bytearray(best_data)
    for _ in range(draw.draw(st.integers(1, 3))):
        broken[draw.draw(st.integers(0, len(broken) - 1))] ^= draw.draw(st.integers(1, 255))
    try:
        # With a checksum that is right again: what lies below it must hold by itself.
        loads(with_checksum(bytes(broken)))
    except InputError:
        return


def test_arrays_that_no_training_gives(best: TwoStageDetector, best_data: bytes) -> None:
    card = {ENTRY: NO_CHECKSUM + encode(best.card).decode()}
    for name, array, said in (
        ("trees", None, "missing or unknown"),
        ("trees", np.zeros(4, np.float32), "not bytes"),
        ("trees", np.frombuffer(b"\xff\xfe", np.uint8), "not text"),
        ("trees", np.frombuffer(b"tree\n", np.uint8), "model of trees"),
        ("naming.gate.threshold", None, "."),
        ("naming.more", np.zeros(1, np.float32), "missing or unknown"),
        ("light.dense2.bias", np.zeros(2, np.float32), "missing or unknown"),
        ("profiles", None, "no profiles"),
        ("profiles", np.frombuffer(b"{", np.uint8), "not a valid"),
    ):
        arrays = load_arrays(best_data)
        if array is None:
            del arrays[name]
        else:
            arrays[name] = array
        with pytest.raises(InputError, match=said):
            loads(with_checksum(save_arrays(arrays, metadata=card)))


def test_stage_1_alone_is_not_kept(runs: tuple[LabelledRun, ...]) -> None:
    alone = train(runs, TrainingSettings(folds=2, window=4, trees=10), naming=False)
    with pytest.raises(InputError, match="without a stage 2"):
        dumps(alone)


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
    card = {ENTRY: NO_CHECKSUM + encode(detector.card).decode()}

    def altered(name: str, tensor: torch.Tensor | None) -> bytes:
        tensors = load(data)
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
        return with_checksum(save(tensors, metadata=card))

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
        ('"natwork-profiler/2"', '"natwork-profiler/9"'),
        ('"high_cpu"', '"high_cpv"'),
        ('"window":6', '"window":1'),
        ('"threshold":0.', '"threshold":7.'),
        ('"runs":', '"more":1,"runs":'),
        ('"calibration":[1.0', '"calibration":[0.0'),
    ],
)
def test_cards_out_of_range(detector: TwoStageDetector, data: bytes, old: str, new: str) -> None:
    text = encode(detector.card).decode()
    assert old in text
    broken = with_checksum(save(load(data), metadata={ENTRY: NO_CHECKSUM + text.replace(old, new, 1)}))
    with pytest.raises(InputError) as caught:
        loads(broken)
    assert "checksum" not in caught.value.what


def test_settings_out_of_range() -> None:
    with pytest.raises(InputError, match="epochs"):
        TrainingSettings(epochs=0)
    with pytest.raises(InputError, match="learning_rate"):
        TrainingSettings(learning_rate=float("nan"))
