"""Signed notes against published examples, our own fixed vector, and everything that must fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from natwork_ray.audit.notes import Checkpoint, Signer, VerifierKey, open_checkpoint, open_note, sign_checkpoint
from natwork_ray.errors import InputError, VerificationError

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "vectors" / "signed_note.json").read_text(encoding="utf-8")
)
OWN = VECTORS["own"]
SIGNER = Signer.from_seed(OWN["name"], bytes.fromhex(OWN["seed"]))
KEY = SIGNER.verifier_key


@pytest.mark.parametrize("case", VECTORS["foreign"], ids=lambda case: case["key"].split("+")[0])
def test_published_notes_open_and_are_signed_alike(case: dict[str, Any]) -> None:
    key = VerifierKey.parse(case["key"])
    note = f"{case['text']}\n{case['signature']}".encode()
    assert str(key) == case["key"]
    assert open_note(note, key) == case["text"]
    if case["seed"]:
        assert Signer.from_seed(key.name, bytes.fromhex(case["seed"])).sign_note(case["text"]) == note


def test_our_own_checkpoint_vector() -> None:
    root = bytes.fromhex(OWN["root"])
    assert str(KEY) == OWN["key"]
    assert sign_checkpoint(SIGNER, OWN["size"], root).decode() == OWN["note"]
    assert open_checkpoint(OWN["note"].encode(), KEY) == Checkpoint(OWN["name"], OWN["size"], root)


@pytest.mark.parametrize("case", VECTORS["must_fail"], ids=lambda case: case["why"])
def test_checkpoints_that_must_fail(case: dict[str, Any]) -> None:
    with pytest.raises(VerificationError) as caught:
        open_checkpoint(case["note"].encode(), KEY)
    assert caught.value.hint


@given(st.integers(0, len(OWN["note"].encode()) - 1), st.integers(1, 255))
def test_any_changed_byte_of_a_checkpoint_fails(at: int, change: int) -> None:
    note = bytearray(OWN["note"].encode())
    note[at] ^= change
    with pytest.raises(VerificationError):
        open_checkpoint(bytes(note), KEY)


def test_pem_round_trip_and_fresh_keys() -> None:
    again = Signer.from_pem(OWN["name"], SIGNER.to_pem())
    assert again.verifier_key == KEY
    assert Signer.generate("a").verifier_key != Signer.generate("a").verifier_key
    other = X25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for pem in (b"", b"-----BEGIN PRIVATE KEY-----\n", other):
        with pytest.raises(InputError):
            Signer.from_pem(OWN["name"], pem)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name",
        "name+00000000",
        f"{KEY.name}+{KEY.key_id}+!!!!",
        f"{KEY.name}+{KEY.key_id}+AQ==",
        f"{KEY.name}+00000000+{str(KEY).split('+', 2)[2]}",
        f"{KEY.name}x+{KEY.key_id}+{str(KEY).split('+', 2)[2]}",
        f"na me+{KEY.key_id}+{str(KEY).split('+', 2)[2]}",
    ],
)
def test_malformed_verifier_keys_are_refused(text: str) -> None:
    with pytest.raises(InputError):
        VerifierKey.parse(text)


def test_unusable_arguments_are_refused() -> None:
    for text in ("", "no newline", "\nempty first\n", "empty\n\nline\n", "control\r\n"):
        with pytest.raises(InputError):
            SIGNER.sign_note(text)
    for size, root in ((-1, bytes(32)), (1, bytes(31))):
        with pytest.raises(InputError):
            sign_checkpoint(SIGNER, size, root)
    for name in ("", "a b", "a+b", "ä", "x" * 256):
        with pytest.raises(InputError):
            VerifierKey(name, bytes(32))
    with pytest.raises(InputError):
        VerifierKey("name", bytes(31))
    with pytest.raises(InputError):
        Signer.from_seed("name", bytes(31))


def test_text_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(VerificationError, match="UTF-8 at byte 0"):
        open_note(b"\xff" + OWN["note"].encode(), KEY)
