"""The gateway on Ray Serve: HTTP in front of the control actor.

The replica keeps a client of the control actor, which finds the actor again after it was restarted, and nothing else.
The token is read in the replica, from NATWORK_API_TOKEN or from <state_dir>/api-token, so that it never travels through
Serve's configuration or a pickled object.

    serve run serve_apps.gateway:app
"""

from __future__ import annotations

from ray import serve
from starlette.types import ASGIApp

from agents.control import ControlClient, connect
from agents.limi import LimiOffice
from agents.models import ServeModelCheck
from natwork_ray.config import load_config
from serve_apps.gateway_api import create_app
from serve_apps.security import LOOPBACK_HOSTS, read_token, token_digest
from serve_apps.security import TOKEN_FILE as TOKEN_FILE
from serve_apps.series import SeriesLimits

_PATIENCE_S = 10.0


class GatewayReplica:
    """One replica."""

    def __init__(self) -> None:
        config = load_config()
        self._http = config.http
        self._token = read_token(config.state_dir)
        self._control = connect(patience_s=_PATIENCE_S)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """The application, built in the replica."""

        async def provide() -> ControlClient:
            return self._control

        return create_app(
            provide,
            token=self._token,
            max_body_bytes=self._http.max_body_bytes,
            allowed_hosts=(*LOOPBACK_HOSTS, self._http.host),
            agents=LimiOffice(patience_s=_PATIENCE_S),
            check=ServeModelCheck(),
            series=SeriesLimits(digest=None if self._http.host in LOOPBACK_HOSTS else token_digest(self._token)),
        )


Gateway: serve.Deployment = serve.deployment(
    name="Gateway",
    num_replicas=1,
    max_ongoing_requests=128,
    health_check_period_s=5,
    health_check_timeout_s=10,
    graceful_shutdown_timeout_s=5,
    ray_actor_options={"num_cpus": 0.1},
)(serve.ingress()(GatewayReplica))

app = Gateway.bind()
