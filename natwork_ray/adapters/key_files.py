"""The audit log's key pair on disk: `audit.key` (PKCS #8, mode 0600) and `audit.pub` (one line, for auditors).

The private key is written once, whole or not at all, and refused when others can read it. A missing private
key beside an existing log is never replaced silently: a new key would look like a new log to whoever pinned
the old one.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from natwork_ray.audit.notes import Signer
from natwork_ray.errors import NotFoundError, PreconditionError

PRIVATE = "audit.key"
PUBLIC = "audit.pub"


def load_signer(directory: Path, origin: str) -> Signer:
    """Read the private key, and write `audit.pub` where it is missing.

    Raises:
        NotFoundError: there is no private key.
        PreconditionError: others may read it, or `audit.pub` is that of another key.
        InputError: it is not an Ed25519 key.
    """
    path = directory / PRIVATE
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no {path}", hint="restore it from a backup") from error
    except OSError as error:
        raise PreconditionError(
            f"cannot read {path}: {error.strerror}", hint="it must be a plain file that belongs to you"
        ) from error
    with os.fdopen(descriptor, "rb") as stream:
        mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
        if mode & 0o077:
            raise PreconditionError(
                f"{path} has mode {mode:04o}: others may read or change the key that signs the audit log",
                hint=f"run: chmod 600 {path}; if others had access, start a new log with a new key",
            )
        signer = Signer.from_pem(origin, stream.read(65_536))
    public = directory / PUBLIC
    text = f"{signer.verifier_key}\n"
    if not public.exists():
        _write(public, text.encode(), 0o644)
    elif public.read_text(encoding="utf-8", errors="replace") != text:
        raise PreconditionError(
            f"{public} is not that of {path} and origin {origin!r}",
            hint="use the origin that the log was made with, or restore both files from one backup",
        )
    return signer


def create_signer(directory: Path, origin: str) -> Signer:
    """Make a key pair; the caller holds the directory's lock and knows that there is none yet."""
    signer = Signer.generate(origin)
    _write(directory / PRIVATE, signer.to_pem(), 0o600)
    return load_signer(directory, origin)


def _write(path: Path, data: bytes, mode: int) -> None:
    """Create a file whole: a kill leaves the new file or none."""
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    draft.rename(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
