"""ModelStore over a folder, with the models that come with the package behind it.

A model saved by the user hides the packaged one of the same name; deleting the file brings the packaged one back.
Saving is atomic: a reader sees the old bytes or the new ones, also when the power fails in between.

Versions: what is saved or published is also kept under its digest, the newest `KEPT` of each name, and never less than
the one in use and the one before it. `use` makes a kept version the one that `load` gives, `rollback` the one that it
gave before; both read the bytes back and compare their digest first, so that a file that has rotted is refused.

    <folder>/profiler.safetensors                             the version in use
    <folder>/versions/profiler/000003-<sha256>.safetensors    a version kept
    <folder>/versions/profiler/previous                       digest of the version used before

    >>> store = ModelDirectory(state_dir / "models")
    >>> detector = loads(store.load("profiler"))
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from pathlib import Path

from natwork_ray.domain.model_versions import ModelVersion
from natwork_ray.errors import InputError, NotFoundError, StoreError
from natwork_ray.forecasting import bounds as forecasting_bounds
from natwork_ray.profiling import bounds as profiling_bounds

KEPT = 8
# Where the models are that come with the package.
PACKAGED = (profiling_bounds.PACKAGED_MODELS, forecasting_bounds.PACKAGED_MODELS)
_SUFFIX = ".safetensors"
_VERSIONS = "versions"
_PREVIOUS = "previous"
# What a folder entry may be called everywhere, and no path.
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_KEPT_FILE = re.compile(r"(\d{6,})-([0-9a-f]{64})\.safetensors")


class ModelDirectory:
    """Models by name: `<folder>/<name>.safetensors`, else the packaged one; and their versions by digest."""

    def __init__(self, folder: Path | None = None, *, packaged: Path | tuple[Path, ...] = PACKAGED) -> None:
        """`folder` is made when the first model is saved; None gives a read-only store of the packaged models."""
        self._folder = folder.expanduser() if folder else None
        self._packaged = packaged if isinstance(packaged, tuple) else (packaged,)

    def load(self, name: str) -> bytes:
        """The newest model of that name.

        Raises:
            NotFoundError: no such model.
            StoreError: it is there but cannot be read.
        """
        own = (self._folder,) if self._folder else ()
        for folder in (*own, *self._packaged):
            data = _read(folder / self._file(name))
            if data is not None:
                return data
        raise NotFoundError(f"there is no model {name!r}", hint="make one with `natwork train profiler`")

    def save(self, name: str, data: bytes) -> None:
        """Store a model under a name, atomically replacing an older one, which is kept as a version.

        Raises:
            StoreError: the store is read-only, or the disk refused.
        """
        self._put_to_use(name, data)

    def publish(self, name: str, data: bytes) -> ModelVersion:
        """Keep a version without using it. The same bytes published again are the same version.

        Raises:
            StoreError: the store is read-only, or the disk refused.
        """
        digest = hashlib.sha256(data).hexdigest()
        known = self._kept(name)
        if digest not in known:
            number = max((int(path.name.partition("-")[0]) for path in known.values()), default=0) + 1
            path = self._versions_folder(name) / f"{number:06d}-{digest}{_SUFFIX}"
            self._write(path, data, name)
            self._prune(name, spare=digest)
        return next(v for v in self.versions(name) if v.sha256 == digest)

    def versions(self, name: str) -> tuple[ModelVersion, ...]:
        """The versions of a model, newest first, the packaged one last; empty when there is no such model.

        Raises:
            StoreError: they cannot be read.
        """
        kept = self._kept(name)
        found = []
        for digest, path in sorted(kept.items(), key=lambda item: item[1].name, reverse=True):
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue  # another process has pruned it
            found.append(
                ModelVersion(name=name, sha256=digest, size_bytes=stat.st_size, saved_s=stat.st_mtime, packaged=False)
            )
        for folder in self._packaged:
            data = _read(folder / self._file(name))
            if data is not None and (digest := hashlib.sha256(data).hexdigest()) not in kept:
                found.append(ModelVersion(name=name, sha256=digest, size_bytes=len(data), saved_s=None, packaged=True))
        return tuple(found)

    def version(self, name: str, sha256: str) -> bytes:
        """The bytes of one version.

        Raises:
            NotFoundError: it is not kept.
            StoreError: it cannot be read, or its bytes are no longer those of its digest.
        """
        if _DIGEST.fullmatch(sha256) is None:
            raise InputError(f"{sha256[:80]!r} is no SHA-256 in hex", hint="64 digits from 0 to f, lower case")
        path = self._kept(name).get(sha256)
        candidates = [path] if path else [folder / self._file(name) for folder in self._packaged]
        for candidate in candidates:
            data = _read(candidate)
            if data is None:
                continue
            if hashlib.sha256(data).hexdigest() == sha256:
                return data
            if path is not None:
                raise StoreError(f"{path} does not hold what its name says", hint="publish that version again")
        raise NotFoundError(
            f"there is no version {sha256[:12]} of model {name!r}", hint="`natwork models list` shows those kept"
        )

    def use(self, name: str, sha256: str) -> None:
        """Make a kept version the one that `load` gives.

        Raises:
            NotFoundError: it is not kept.
            StoreError: it cannot be read, has rotted, or the disk refused.
        """
        self._put_to_use(name, self.version(name, sha256))

    def rollback(self, name: str) -> str:
        """Make the version used before the present one the one that `load` gives; its digest.

        Raises:
            NotFoundError: no other version was used, or it is not kept.
            StoreError: as `use`.
        """
        previous = self._previous(name)
        if previous is None:
            raise NotFoundError(f"no other version of model {name!r} was used", hint="`natwork models list`")
        self.use(name, previous)
        return previous

    def _put_to_use(self, name: str, data: bytes) -> None:
        file = self._file(name)
        if self._folder is None:
            raise _read_only(name)
        before = _read(self._folder / file)
        if before is not None and before != data:
            self.publish(name, before)
            self._write(self._versions_folder(name) / _PREVIOUS, _digest_line(before), name)
        elif before is None:
            packaged = next((d for folder in self._packaged if (d := _read(folder / file)) is not None), None)
            if packaged is not None and packaged != data:
                self._write(self._versions_folder(name) / _PREVIOUS, _digest_line(packaged), name)
        self.publish(name, data)
        self._write(self._folder / file, data, name)

    def _previous(self, name: str) -> str | None:
        if self._folder is None:
            return None
        data = _read(self._versions_folder(name) / _PREVIOUS)
        text = data.decode("ascii", errors="replace").strip() if data is not None else ""
        return text if _DIGEST.fullmatch(text) else None

    def _kept(self, name: str) -> dict[str, Path]:
        """The versions kept, by digest."""
        self._file(name)  # refuses what is no name
        if self._folder is None:
            return {}
        try:
            paths = sorted(self._versions_folder(name).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise StoreError(f"cannot list versions of {name!r}: {error}", hint="check the permissions") from error
        return {match[2]: path for path in paths if (match := _KEPT_FILE.fullmatch(path.name))}

    def _prune(self, name: str, *, spare: str) -> None:
        assert self._folder is not None  # noqa: S101 - whoever prunes has just written
        in_use = _read(self._folder / self._file(name))
        needed = {spare, self._previous(name), hashlib.sha256(in_use).hexdigest() if in_use is not None else None}
        kept = sorted(self._kept(name).items(), key=lambda item: item[1].name, reverse=True)
        for digest, path in kept[KEPT:]:
            if digest not in needed:
                path.unlink(missing_ok=True)

    def _versions_folder(self, name: str) -> Path:
        if self._folder is None:
            raise _read_only(name)
        return self._folder / _VERSIONS / name

    def _write(self, path: Path, data: bytes, name: str) -> None:
        """Put bytes where a reader finds the old ones or the new ones."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{name}-", suffix=".part")
            try:
                with os.fdopen(descriptor, "wb") as part:
                    part.write(data)
                    part.flush()
                    os.fsync(part.fileno())
                Path(temporary).replace(path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
            _sync_folder(path.parent)
        except OSError as error:
            raise StoreError(
                f"cannot save model {name!r} in {self._folder}: {error}", hint="check free space and permissions"
            ) from error

    @staticmethod
    def _file(name: str) -> str:
        if _NAME.fullmatch(name) is None:
            raise InputError(
                f"model name {name[:80]!r}", hint="lower-case letters, digits, - and _, at most 64, beginning with one"
            )
        return name + _SUFFIX


def _read(path: Path) -> bytes | None:
    """The bytes of a file; None when there is none."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StoreError(f"cannot read model {path}: {error}", hint="check the file's permissions") from error


def _digest_line(data: bytes) -> bytes:
    return f"{hashlib.sha256(data).hexdigest()}\n".encode("ascii")


def _read_only(name: str) -> StoreError:
    return StoreError(f"cannot save model {name!r}: this store has no folder", hint="name a state folder")


def _sync_folder(folder: Path) -> None:
    # Without this the new name may be lost with the power, though the bytes are on disk.
    descriptor = os.open(str(folder), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
