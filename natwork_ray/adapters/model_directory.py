"""ModelStore over a folder, with the models that come with the package behind it.

A model saved by the user hides the packaged one of the same name; deleting the file brings the packaged one back.
Saving is atomic: a reader sees the old bytes or the new ones, also when the power fails in between.

    >>> store = ModelDirectory(state_dir / "models")
    >>> detector = loads(store.load("profiler"))
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from natwork_ray.errors import InputError, NotFoundError, StoreError
from natwork_ray.profiling.bounds import PACKAGED_MODELS

_SUFFIX = ".safetensors"
# What a folder entry may be called everywhere, and no path.
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


class ModelDirectory:
    """Models by name: `<folder>/<name>.safetensors`, else the packaged one."""

    def __init__(self, folder: Path | None = None, *, packaged: Path = PACKAGED_MODELS) -> None:
        """`folder` is made when the first model is saved; None gives a read-only store of the packaged models."""
        self._folder = folder.expanduser() if folder else None
        self._packaged = packaged

    def load(self, name: str) -> bytes:
        """The newest model of that name.

        Raises:
            NotFoundError: no such model.
            StoreError: it is there but cannot be read.
        """
        for folder in (self._folder, self._packaged):
            if folder is None:
                continue
            path = folder / self._file(name)
            try:
                return path.read_bytes()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise StoreError(f"cannot read model {path}: {error}", hint="check the file's permissions") from error
        raise NotFoundError(f"there is no model {name!r}", hint="make one with `natwork train profiler`")

    def save(self, name: str, data: bytes) -> None:
        """Store a model under a name, atomically replacing an older one.

        Raises:
            StoreError: the store is read-only, or the disk refused.
        """
        file = self._file(name)
        if self._folder is None:
            raise StoreError(f"cannot save model {name!r}: this store has no folder", hint="name a state folder")
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor, temporary = tempfile.mkstemp(dir=self._folder, prefix=f".{name}-", suffix=".part")
            try:
                with os.fdopen(descriptor, "wb") as part:
                    part.write(data)
                    part.flush()
                    os.fsync(part.fileno())
                Path(temporary).replace(self._folder / file)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
            self._sync_folder()
        except OSError as error:
            raise StoreError(
                f"cannot save model {name!r} in {self._folder}: {error}", hint="check free space and permissions"
            ) from error

    def _sync_folder(self) -> None:
        # Without this the new name may be lost with the power, though the bytes are on disk.
        descriptor = os.open(str(self._folder), os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @staticmethod
    def _file(name: str) -> str:
        if _NAME.fullmatch(name) is None:
            raise InputError(
                f"model name {name[:80]!r}", hint="lower-case letters, digits, - and _, at most 64, beginning with one"
            )
        return name + _SUFFIX
