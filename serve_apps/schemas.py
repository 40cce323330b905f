"""Schemas for bodies that are parsed by hand: FastAPI collects components from typed parameters only."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter


def inlined(kind: TypeAdapter[Any]) -> dict[str, Any]:
    """The JSON schema of a type with every definition put where it is used. The type must not contain itself."""
    schema = kind.json_schema(ref_template="#/components/schemas/{model}")
    parts = schema.pop("$defs", {})
    whole: dict[str, Any] = _inline(schema, parts)
    return whole


def _inline(node: Any, parts: dict[str, Any]) -> Any:
    if isinstance(node, dict):
        if "$ref" in node:
            return _inline(parts[node["$ref"].rsplit("/", 1)[-1]], parts)
        return {key: _inline(item, parts) for key, item in node.items()}
    if isinstance(node, list):
        return [_inline(item, parts) for item in node]
    return node
