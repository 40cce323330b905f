"""The running system's HTTP doors, as the command line uses them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from natwork_ray.config import Config, load_config
from natwork_ray.errors import (
    ConflictError,
    NatworkError,
    NotFoundError,
    PreconditionError,
    RefusedError,
    TimedOutError,
    UsageError,
)

_TIMEOUT_S = 20.0
_MAX_TOKEN_BYTES = 4096
_ERRORS: dict[int, type[NatworkError]] = {
    401: RefusedError,
    403: RefusedError,
    404: NotFoundError,
    409: ConflictError,
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
            NatworkError: the gateway's refusal, with its hint.
        """
        return self._ask("GET", path, params=query)

    def change(self, method: str, path: str, body: dict[str, Any]) -> Any:
        """A change, with the token. Errors as `get`."""
        try:
            with self._token_file.open("r", encoding="ascii") as file:
                token = file.read(_MAX_TOKEN_BYTES).strip()
        except OSError as error:
            raise PreconditionError(
                f"cannot read the token {self._token_file}: {error}", hint="only the user who started the system can"
            ) from error
        return self._ask(method, path, json=body, headers={"Authorization": f"Bearer {token}"})

    def _ask(self, method: str, path: str, **request: Any) -> Any:
        try:
            answer = httpx.request(method, f"{self.url}/api/v1{path}", timeout=_TIMEOUT_S, trust_env=False, **request)
        except httpx.TimeoutException as error:
            raise TimedOutError(f"{self.url} did not answer in {_TIMEOUT_S:.0f} s", hint="`natwork status`") from error
        except httpx.TransportError as error:
            raise PreconditionError(f"nobody answers at {self.url}: {error}", hint="`natwork up` starts it") from error
        if answer.is_success:
            return answer.json()
        try:
            problem = answer.json()
            what, hint = str(problem.get("detail", problem)), str(problem.get("hint", "see docs/http.md"))
        except ValueError:
            what, hint = answer.text[:200], "see docs/http.md"
        raise _ERRORS.get(answer.status_code, PreconditionError)(f"{answer.status_code}: {what}", hint=hint)
