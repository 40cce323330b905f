"""A checksum covers every bit of a file, its own included."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from natwork_ray.domain.checksums import ENTRY, NO_CHECKSUM, verify_checksum, with_checksum, without_checksum
from natwork_ray.errors import InputError


def file(card: str, weights: bytes) -> bytes:
    array = np.frombuffer(weights, dtype=np.uint8)
    data: bytes = save({ENTRY: array, "weights": array}, metadata={ENTRY: NO_CHECKSUM + card})
    return data


def entry(data: bytes) -> object:
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"][ENTRY]


@given(st.text(max_size=40) | st.just(f'"{ENTRY}":"{NO_CHECKSUM}'), st.binary(max_size=40), st.data())
def test_every_bit_counts(card: str, weights: bytes, draw: st.DataObject) -> None:
    data = with_checksum(file(card, weights))
    verify_checksum(data)
    assert with_checksum(data) == data
    assert without_checksum(entry(data)) == card
    broken = bytearray(data)
    broken[draw.draw(st.integers(0, len(data) - 1))] ^= 1 << draw.draw(st.integers(0, 7))
    for damaged in (bytes(broken), data[:-1], data + b"\0"):
        with pytest.raises(InputError, match="checksum"):
            verify_checksum(damaged)


@given(st.binary(max_size=300))
def test_where_there_is_no_place_for_one(noise: bytes) -> None:
    for work in (with_checksum, verify_checksum):
        with pytest.raises(InputError, match="no checksum"):
            work(noise)


@pytest.mark.parametrize("odd", [None, 3, [], "", "sha256:", "{}", NO_CHECKSUM[:-1], NO_CHECKSUM[:-1] + "{"])
def test_entries_without_one(odd: object) -> None:
    with pytest.raises(InputError, match="no checksum"):
        without_checksum(odd)
