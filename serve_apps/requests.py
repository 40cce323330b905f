"""What the model doors share in reading requests and describing them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import Request
from starlette.exceptions import HTTPException

T = TypeVar("T")

# A body so small is parsed at once: handing it to a thread would cost more than parsing it.
SMALL_BYTES = 32_768


def media_of(request: Request, *readable: str) -> str:
    """The media type of the body; 415 when it is none that can be read here."""
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media not in readable:
        raise HTTPException(415, f"no reading of {media[:80] or 'a body without a Content-Type'}")
    return media


async def parsed(parse: Callable[..., T], body: bytes, *more: Any) -> T:
    """`parse(body, ...)`, in a thread when the body is large."""
    return parse(body, *more) if len(body) <= SMALL_BYTES else await asyncio.to_thread(parse, body, *more)


def body_of(kinds: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI request body with a schema for each media type."""
    return {"required": True, "content": {media: {"schema": schema} for media, schema in kinds.items()}}


def binary() -> dict[str, Any]:
    """The schema of bytes."""
    return {"type": "string", "format": "binary"}
