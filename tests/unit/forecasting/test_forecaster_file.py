"""A forecaster survives its file, and nothing else gets in."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from natwork_ray.domain.checksums import ENTRY, NO_CHECKSUM, with_checksum, without_checksum
from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.domain.telemetry import TelemetryWindow
from natwork_ray.errors import InputError, PreconditionError
from natwork_ray.forecasting.bounds import MAX_MODEL_BYTES
from natwork_ray.forecasting.forecaster import Forecaster
from natwork_ray.forecasting.model_file import digest, dumps, loads, read_forecaster

Tensors = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def data(small: Forecaster) -> bytes:
    return dumps(small)


def metadata(data: bytes) -> dict[str, str]:
    length = int.from_bytes(data[:8], "little")
    found: dict[str, str] = json.loads(data[8 : 8 + length])["__metadata__"]
    return found


def test_forecasts_are_the_same_after_the_file(
    small: Forecaster, data: bytes, training_runs: tuple[LabelledRun, ...], make_window: Callable[..., TelemetryWindow]
) -> None:
    window = make_window(training_runs[:2])
    again = loads(data)
    assert again.forecast(window) == small.forecast(window)
    assert again.card == small.card
    assert dumps(again) == data
    assert len(digest(data)) == 64


def test_a_commissioned_forecaster_survives_too(
    small: Forecaster, make_recording: Callable[..., LabelledRun], make_window: Callable[..., TelemetryWindow]
) -> None:
    run = make_recording("upf", "1", seed=5)
    known = small.commissioned(make_window((run,), end=120, length=120))
    assert loads(dumps(known)).forecast(make_window((run,))) == known.forecast(make_window((run,)))


def test_it_is_read_from_a_file(small: Forecaster, data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "forecaster.safetensors"
    file.write_bytes(data)
    found, sha256 = read_forecaster(file)
    assert found.card == small.card
    assert sha256 == digest(data)
    file.write_bytes(data[:100])
    with pytest.raises(InputError, match="damaged"):
        read_forecaster(file)
    with pytest.raises(PreconditionError, match="cannot read"):
        read_forecaster(tmp_path / "none")


def without(name: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        del tensors[name]

    return change


def with_value(name: str, odd: float) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[name] = tensors[name].copy()
        tensors[name].reshape(-1)[0] = odd

    return change


def with_array(name: str, array: np.ndarray) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({name: array})


BOMB = np.frombuffer(zlib.compress(b"0" * (9 * 2**20)), dtype=np.uint8)


@pytest.mark.parametrize(
    "change",
    [
        without("references.table"),
        without("trees.0.0.low"),
        with_array("extra", np.zeros(3)),
        with_array("references.fleet", np.zeros((12, 9))),
        with_array("references.fleet", np.zeros((12, 10), dtype=np.float32)),
        with_value("references.fleet", np.nan),
        with_value("references.reach", 0.0),
        with_array("references.table", np.zeros((2, 12, 10))),
        with_value("calibration.model", 7),
        with_value("calibration.model", 3),  # an LSTM that is not there
        with_value("calibration.periods", -1),
        with_array("calibration.model", np.zeros((3, 2, 2))),
        with_value("calibration.factor", 1.5),
        with_value("calibration.tables", 1e9),
        with_value("maps.signatures", np.inf),
        with_value("trees.0.0.low", 0),
        with_array("trees.0.0.low", np.zeros((2, 2), dtype=np.uint8)),
        with_array("trees.0.0.low", BOMB),
        with_array("trees.0.0.low", np.frombuffer(zlib.compress(b"tree\n"), dtype=np.uint8)),
        with_array("trees.0.0.low", np.frombuffer(zlib.compress("tré".encode()), dtype=np.uint8)),
    ],
)
def test_odd_tensors_are_refused(data: bytes, change: Callable[[Tensors], None]) -> None:
    tensors = load(data)
    change(tensors)
    with pytest.raises(InputError) as caught:
        loads(with_checksum(save(tensors, metadata=metadata(data))))
    assert "checksum" not in caught.value.what


@pytest.mark.parametrize(
    "change",
    [{"card": None}, {"card": "{}"}, {"card": 3}, {"maps": None}, {"maps": 3}, {"maps": [1]}, {"maps": ["a", "a"]}],
)
def test_odd_cards_are_refused(data: bytes, change: dict[str, object]) -> None:
    header = {**json.loads(without_checksum(metadata(data)[ENTRY])), **change}
    found = {k: v for k, v in header.items() if v is not None}
    with pytest.raises(InputError):
        loads(with_checksum(save(load(data), metadata={ENTRY: NO_CHECKSUM + json.dumps(found)})))


@pytest.mark.parametrize("text", ["[", "[]", "[" * 100_000])
def test_a_header_that_is_no_card_is_refused(data: bytes, text: str) -> None:
    with pytest.raises(InputError):
        loads(with_checksum(save(load(data), metadata={ENTRY: NO_CHECKSUM + text})))


@pytest.mark.parametrize("odd", [b"", b"\xff" * 8, b"\x02" + b"\0" * 7 + b"{}", b"\0" * 100])
def test_what_is_no_file_is_refused(odd: bytes) -> None:
    with pytest.raises(InputError):
        loads(odd)


def test_a_file_too_large_is_refused() -> None:
    with pytest.raises(InputError, match="exceeds"):
        loads(bytes(MAX_MODEL_BYTES + 1))


@given(cut=st.integers(0, 2000))
@settings(max_examples=20, deadline=None)
def test_a_file_cut_off_is_refused(data: bytes, cut: int) -> None:
    with pytest.raises(InputError):
        loads(data[: len(data) - 1 - cut])


@settings(max_examples=200, deadline=None)
@given(place=st.data(), bit=st.integers(0, 7))
def test_a_single_flipped_bit_is_refused(data: bytes, place: st.DataObject, bit: int) -> None:
    broken = bytearray(data)
    broken[place.draw(st.integers(0, len(data) - 1))] ^= 1 << bit
    with pytest.raises(InputError):
        loads(bytes(broken))


def test_a_file_without_a_checksum_is_refused(data: bytes) -> None:
    with pytest.raises(InputError, match="no checksum") as caught:
        loads(save(load(data), metadata={ENTRY: without_checksum(metadata(data)[ENTRY])}))
    assert "train it anew" in caught.value.hint
