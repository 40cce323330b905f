"""The running system's HTTP doors, as the command line uses them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from natwork_ray.config import Config, load_config
from natwork_ray.errors import (
    ConflictError,
    InputError,
    NatworkError,
    NotFoundError,
    PreconditionError,
    RefusedError,
    TimedOutError,
    UsageError,
)

_TIMEOUT_S = 20.0
_MAX_TOKEN_BYTES = 4096
# By the problem's type where it has one of ours, else by status.
_KINDS: dict[str, type[NatworkError]] = {
    "conflict": ConflictError,
    "not-found": NotFoundError,
    "precondition": PreconditionError,
    "quota": RefusedError,
    "refused": RefusedError,
    "timed-out": TimedOutError,
    "usage": UsageError,
}
_STATUS: dict[int, type[NatworkError]] = {
    400: UsageError,
    401: RefusedError,
    403: RefusedError,
    404: NotFoundError,
    409: RefusedError,
    413: UsageError,
    422: UsageError,
    503: TimedOutError,
}


class Doors:
    """A client of the gateway of one state directory."""

    def __init__(self, state_dir: Path) -> None:
        settled = state_dir / "natwork.toml"
        if not settled.is_file():
            raise PreconditionError(f"no system was started in {state_dir}", hint="`natwork up` starts one")
        self.config: Config = load_config(file=settled, environ={})
        http = self.config.http
        self.url = f"http://{http.host}:{http.port}"
        self._token_file = state_dir / "api-token"

    def get(self, path: str, **query: Any) -> Any:
        """A document.

        Raises:
            PreconditionError: nobody answers there.
            InputError: the answer is no JSON object.
        NatworkError: the gateway's refusal, with its hint.
        """
        return self._ask("GET", path, params=query)

    def change(self, method: str, path: str, body: dict[str, Any], *, key: str | None = None) -> Any:
        """A change, with the token, and with an idempotency key where it must not happen twice. Errors as `get`."""
        headers = self._token() | ({"Idempotency-Key": key} if key else {})
        return self._ask(method, path, json=body, headers=headers)

    def upload(self, path: str, data: bytes) -> Any:
        """Bytes handed over, with the token. Errors as `get`."""
        headers = self._token() | {"Content-Type": "application/octet-stream"}
        return self._ask("POST", path, content=data, headers=headers)

    def _token(self) -> dict[str, str]:
        try:
            with self._token_file.open("r", encoding="ascii") as file:
                token = file.read(_MAX_TOKEN_BYTES).strip()
        except (OSError, UnicodeDecodeError) as error:
            raise PreconditionError(
                f"cannot read the token {self._token_file}: {error}", hint="only the user who started the system can"
            ) from error
        return {"Authorization": f"Bearer {token}"}

    def _ask(self, method: str, path: str, **request: Any) -> Any:
        try:
            answer = httpx.request(method, f"{self.url}/api/v1{path}", timeout=_TIMEOUT_S, trust_env=False, **request)
        except httpx.TimeoutException as error:
            raise TimedOutError(f"{self.url} did not answer in {_TIMEOUT_S:.0f} s", hint="`natwork status`") from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise PreconditionError(f"nobody answers at {self.url}: {error}", hint="`natwork up` starts it") from error
        try:
            document = answer.json()
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise InputError(
                f"{self.url} answered {answer.status_code} without a JSON object: {answer.text[:100]!r}",
                hint="another program may listen on that port: `natwork status`, or --set http.port=ANOTHER",
            )
        if answer.is_success:
            return document
        kind = str(document.get("type", "")).removeprefix("urn:natwork:problem:")
        raise _KINDS.get(kind, _STATUS.get(answer.status_code, NatworkError))(
            f"{answer.status_code}: {document.get('detail', document)}",
            hint=str(document.get("hint", "see docs/http.md")),
        )
