"""Signed notes and checkpoints: the text formats `signed-note` and `tlog-checkpoint` of C2SP, with Ed25519.

A checkpoint says "log ORIGIN had SIZE entries under root ROOT" and is signed by the log's key:

    natwork.example/audit
    42
    CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=
    <empty line>
    — natwork.example/audit <base64 of key id and signature>

The signature covers the text up to and including the newline before the empty line. Other tools that read
these formats can read ours. We are stricter than the formats ask for, because every byte of an export has to
count: exactly one signature, by the known key; base64 in its one canonical spelling; no extension lines; the
key's name is the origin.

Left out: other signature types, and cosignatures of witnesses (keep a checkpoint elsewhere instead:
docs/audit.md). No I/O here: where keys are kept is the journal's matter.

    signer = Signer.generate("natwork.example/audit")
    note = sign_checkpoint(signer, 0, EMPTY_ROOT)
    open_checkpoint(note, signer.verifier_key).size
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from natwork_ray.audit.merkle import HASH_BYTES
from natwork_ray.errors import InputError, VerificationError

MAX_NOTE_BYTES = 4096
MAX_NAME_BYTES = 255
_ED25519 = b"\x01"
_DASH = "— "  # U+2014 and a space begin a signature line
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)


def check_origin(origin: str) -> str:
    """Return `origin` when it can name a log and its key: visible ASCII without `+`, 1 to 255 characters.

    Raises:
        InputError: it cannot.
    """
    if not 1 <= len(origin) <= MAX_NAME_BYTES or any(not "!" <= c <= "~" or c == "+" for c in origin):
        raise InputError(
            f"{origin[:80]!r} cannot name a log",
            hint="use 1 to 255 visible ASCII characters without '+', such as natwork.example/audit",
        )
    return origin


@dataclass(frozen=True)
class VerifierKey:
    """A public key with the name of the log it belongs to. `public` is 32 bytes."""

    name: str
    public: bytes

    def __post_init__(self) -> None:
        check_origin(self.name)
        if len(self.public) != 32:
            raise InputError(f"an Ed25519 public key has 32 bytes, not {len(self.public)}", hint="give the raw key")

    @property
    def key_id(self) -> str:
        """Eight hexadecimal digits: the first four bytes of SHA-256 over name, newline, type and key."""
        return sha256(self.name.encode() + b"\n" + _ED25519 + self.public).hexdigest()[:8]

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id}+{base64.b64encode(_ED25519 + self.public).decode()}"

    @classmethod
    def parse(cls, text: str) -> VerifierKey:
        """Read `name+id+base64`, the format of signed-note.

        Raises:
            InputError: it is not such a key, or the id does not fit name and key.
        """
        hint = "copy the whole line of the log's audit.pub: name+id+key"
        parts = text.split("+", 2)
        if len(parts) != 3:
            raise InputError(f"not a verifier key: {text[:80]!r}", hint=hint)
        data = _canonical_base64(parts[2])
        if data is None or len(data) != 33 or data[:1] != _ED25519:
            raise InputError(f"verifier key {parts[0][:80]!r} does not hold an Ed25519 key", hint=hint)
        key = cls(parts[0], data[1:])
        if key.key_id != parts[1]:
            raise InputError(f"verifier key {key.name!r}: id {parts[1][:16]!r} should be {key.key_id}", hint=hint)
        return key


class Signer:
    """A private key with the name of its log."""

    def __init__(self, name: str, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.verifier_key = VerifierKey(name, key.public_key().public_bytes_raw())

    @classmethod
    def generate(cls, name: str) -> Signer:
        """A fresh key from the operating system's randomness."""
        return cls(name, Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, name: str, seed: bytes) -> Signer:
        """The key of 32 given bytes, for test vectors and replays.

        Raises:
            InputError: not 32 bytes.
        """
        if len(seed) != 32:
            raise InputError(f"an Ed25519 seed has 32 bytes, not {len(seed)}", hint="give the raw seed")
        return cls(name, Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def from_pem(cls, name: str, pem: bytes) -> Signer:
        """Read an unencrypted PKCS #8 key.

        Raises:
            InputError: unreadable, or not Ed25519.
        """
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError) as error:
            raise InputError(
                f"cannot read the private key of {name}: {error}", hint="restore the key file from a backup"
            ) from error
        if not isinstance(key, Ed25519PrivateKey):
            raise InputError(f"the private key of {name} is not Ed25519", hint="restore the key file from a backup")
        return cls(name, key)

    def to_pem(self) -> bytes:
        """PKCS #8, not encrypted: guard the file that it goes to."""
        return self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def sign_note(self, text: str) -> bytes:
        """Sign a text of one or more lines.

        Raises:
            InputError: it does not end in a newline, or holds an empty line or control characters.
        """
        if not text.endswith("\n") or text.startswith("\n") or "\n\n" in text or _has_controls(text):
            raise InputError(
                f"cannot sign {text[:80]!r} as a note",
                hint="lines without control characters, each ended by a newline",
            )
        key = self.verifier_key
        signature = bytes.fromhex(key.key_id) + self._key.sign(text.encode())
        return f"{text}\n{_DASH}{key.name} {base64.b64encode(signature).decode()}\n".encode()


def open_note(note: bytes, key: VerifierKey) -> str:
    """The text of a note with exactly one signature, by `key`.

    Raises:
        VerificationError: malformed, signed by another key, or the signature does not fit.
    """
    hint = "the note was altered or cut, or belongs to another log"
    if len(note) > MAX_NOTE_BYTES:
        raise VerificationError(f"signed note: {len(note)} bytes are more than {MAX_NOTE_BYTES}", hint=hint)
    try:
        content = note.decode("utf-8")
    except UnicodeDecodeError as error:
        raise VerificationError(f"signed note: not UTF-8 at byte {error.start}", hint=hint) from error
    text, gap, signature_line = content.rpartition("\n\n")
    text += "\n"
    if not gap or text.startswith("\n") or "\n\n" in text or _has_controls(text):
        raise VerificationError("signed note: it is not lines of text, one empty line and a signature", hint=hint)
    prefix = f"{_DASH}{key.name} "
    line = signature_line.removesuffix("\n")
    if not signature_line.endswith("\n") or "\n" in line or not line.startswith(prefix):
        raise VerificationError(
            f"signed note: expected one line '{prefix}<signature>' at its end, found {signature_line[:120]!r}",
            hint=hint,
        )
    data = _canonical_base64(line[len(prefix) :])
    if data is None or len(data) != 4 + 64:
        raise VerificationError("signed note: the signature is not 68 bytes in canonical base64", hint=hint)
    if data[:4].hex() != key.key_id:
        raise VerificationError(
            f"signed note: signed by key {data[:4].hex()}, expected {key.key_id}",
            hint="another key signed: compare with the audit.pub that you trust",
        )
    try:
        Ed25519PublicKey.from_public_bytes(key.public).verify(data[4:], text.encode())
    except InvalidSignature as error:
        raise VerificationError(
            f"signed note: the signature of key {key.key_id} does not fit the text", hint=hint
        ) from error
    return text


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says: the log `origin` had `size` entries under the 32-byte `root`."""

    origin: str
    size: int
    root: bytes


def sign_checkpoint(signer: Signer, size: int, root: bytes) -> bytes:
    """The signed note that says how long the signer's log is and what its root is.

    Raises:
        InputError: a negative size or a root that is not 32 bytes.
    """
    if not 0 <= size < 10**19 or len(root) != HASH_BYTES:
        raise InputError(
            f"no checkpoint over {size} entries and a root of {len(root)} bytes",
            hint="give a size >= 0 and 32 bytes",
        )
    return signer.sign_note(f"{signer.verifier_key.name}\n{size}\n{base64.b64encode(root).decode()}\n")


def open_checkpoint(note: bytes, key: VerifierKey) -> Checkpoint:
    """Verify a signed checkpoint and return what it says.

    Raises:
        VerificationError: malformed, altered, of another log, or not signed by `key`.
    """
    hint = "the checkpoint was altered, or belongs to another log"
    lines = open_note(note, key).split("\n")
    if len(lines) != 4:
        raise VerificationError(f"checkpoint: {len(lines) - 1} lines, expected origin, size and root", hint=hint)
    origin, size, root_text, _ = lines
    if origin != key.name:
        raise VerificationError(f"checkpoint: of log {origin!r}, expected {key.name!r}", hint=hint)
    if not _SIZE.fullmatch(size):
        raise VerificationError(f"checkpoint: {size[:40]!r} is not a size", hint=hint)
    root = _canonical_base64(root_text)
    if root is None or len(root) != HASH_BYTES:
        raise VerificationError("checkpoint: the root is not 32 bytes in canonical base64", hint=hint)
    return Checkpoint(origin, int(size), root)


def _canonical_base64(text: str) -> bytes | None:
    """Decode, or None where `text` is not the one spelling that encoding gives."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if base64.b64encode(data).decode() == text else None


def _has_controls(text: str) -> bool:
    return any(c < " " and c != "\n" for c in text)
