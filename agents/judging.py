"""The detector behind Ray Serve, as the loop's judge.

Profiles stay here, with the caller; a replica of the model keeps nothing, so killing it costs a retry and no state.
"""

from __future__ import annotations

from typing import Any

from ray import serve

from agents.calls import PATIENCE_S, persist
from natwork_ray.control.cycle import Judgement
from natwork_ray.domain.telemetry import TelemetryWindow
from natwork_ray.profiling.profile import ProfileBook
from natwork_ray.profiling.verdicts import reach_verdicts


class ServeJudge:
    """`Judge` over a deployment handle."""

    def __init__(self, profiles: ProfileBook, *, app: str, patience_s: float = PATIENCE_S) -> None:
        self._profiles = profiles
        self._app = app
        self._patience_s = patience_s
        self._handle: Any = None

    def use(self, profiles: ProfileBook) -> None:
        """Judge by these profiles from now on."""
        self._profiles = profiles

    async def judge(self, window: TelemetryWindow) -> Judgement:
        """See `Judge`. Inference has no effect, so it is repeated when a replica dies under it."""
        references = self._profiles.references(window.services)

        async def ask() -> Any:
            if self._handle is None:
                self._handle = serve.get_app_handle(self._app)
            return await self._handle.score.remote(window.values, references)

        scores = await persist(ask, what="anomaly model", patience_s=self._patience_s)
        verdicts, degraded = reach_verdicts(window, scores, known=self._profiles.known(window.services))
        return Judgement(verdicts, degraded)
