"""Finished cells of a reproduction as files: one small JSON file each, whole or not there.

A run that was killed goes on: what it had finished is read, the rest is computed. A file's name is a digest of the
recordings, the code and the cell (`reproduction.cells.cell_key`), so a result of other data or of an older program is
never taken for this one; it simply stays in the folder, unread. A file that does not parse is an error with its name,
never a silent repetition: something else writes there.

    >>> kept = FinishedCells(Path("work"), data=data_digest(runs), code=code_digest())
    >>> kept.save(cell, result)
    >>> kept.load(cell)
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from natwork_ray.domain.values import decode, encode
from natwork_ray.errors import InputError, StoreError
from natwork_ray.profiling.reproduction.cells import Cell, CellResult, cell_key

_MAX_BYTES = 256 * 2**20


class FinishedCells:
    """The results in one folder that belong to these recordings and this code."""

    def __init__(self, folder: Path, *, data: str, code: str) -> None:
        self._folder = folder
        self._data = data
        self._code = code
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make {folder}: {error}", hint="name a folder for finished work") from error

    def load(self, cell: Cell) -> CellResult | None:
        """The kept result; None where there is none.

        Raises:
            StoreError: it cannot be read.
            InputError: it is there and damaged.
        """
        path = self._path(cell)
        try:
            if path.stat().st_size > _MAX_BYTES:
                raise InputError(f"{path}: larger than {_MAX_BYTES} bytes", hint="remove it; it will be made anew")
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error}", hint="check the file's permissions") from error
        try:
            return decode(CellResult, data)
        except InputError as error:
            raise InputError(f"{path}: {error.what}", hint="remove it; it will be made anew") from error

    def save(self, cell: Cell, result: CellResult) -> None:
        """Keep a result, atomically.

        Raises:
            StoreError: the disk refused.
        """
        path = self._path(cell)
        try:
            descriptor, part = tempfile.mkstemp(dir=self._folder, prefix=f".{path.stem}-", suffix=".part")
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(encode(result))
                Path(part).replace(path)
            except BaseException:
                Path(part).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error}", hint="check free space and permissions") from error

    def _path(self, cell: Cell) -> Path:
        return self._folder / f"{cell_key(cell, self._data, self._code)}.json"
