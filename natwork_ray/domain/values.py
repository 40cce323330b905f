"""What every domain value has in common: frozen, keyword-only, and strict at the border.

`@value` makes a standard frozen dataclass. `encode` and `decode` are the only way in and out of JSON: unknown
keys, wrong types, NaN and infinities are refused, so a hostile or outdated file cannot become a half-right value.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar, dataclass_transform

from pydantic import ConfigDict, TypeAdapter, ValidationError

from natwork_ray.errors import InputError

T = TypeVar("T")

# The default would write NaN as null, and so turn a broken limit into "leave it as it is".
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False, ser_json_inf_nan="constants")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def value(cls: type[T]) -> type[T]:
    """Make `cls` a frozen, keyword-only dataclass with strict JSON decoding."""
    cls.__pydantic_config__ = _STRICT  # type: ignore[attr-defined]
    return dataclass(frozen=True, kw_only=True)(cls)


_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}


def _adapter(kind: Any) -> TypeAdapter[Any]:
    adapter = _ADAPTERS.get(kind)
    if adapter is None:
        adapter = _ADAPTERS[kind] = TypeAdapter(kind)
    return adapter


def encode(item: object, kind: Any = None) -> bytes:
    """JSON bytes of a value. `kind` names the union for a member of a tagged union (default: its own type).

    Raises:
        InputError: a field holds something that its type does not allow, or that JSON cannot carry.
    """
    try:
        document = _adapter(kind or type(item)).dump_python(item, mode="json", warnings="error")
        return json.dumps(document, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
    except ValueError as error:  # also pydantic's and Unicode's
        raise InputError(
            f"a {type(item).__name__} cannot be written as JSON: {error}", hint="give every field a value of its type"
        ) from error


def plain(item: object, kind: Any = None) -> Any:
    """The value as plain JSON types (dict, list, str, float, ...), for documents built from several values."""
    return _adapter(kind or type(item)).dump_python(item, mode="json")


def decode(kind: type[T] | Any, data: bytes | str) -> T:
    """Parse JSON into `kind`, strictly.

    Raises:
        InputError: malformed JSON, unknown or missing keys, values of the wrong type or out of range.
    """
    try:
        result: T = _adapter(kind).validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        name = getattr(kind, "__name__", "value")
        raise InputError(
            f"not a valid {name}: {where}: {first['msg']}",
            hint="compare with the schema in docs/ and send exactly these fields",
        ) from error
    return result


class Backend(StrEnum):
    """Where a figure, a record or an effect comes from. Every record says which."""

    REAL = "real"
    EMULATED = "emulated"
    REPLAYED = "replayed"
