"""`config.yaml`, what `serve deploy` takes: the output of `serve build`, bound to loopback.

`serve build` writes down what the deployments say of themselves, so the file must be made again when they change; a
test compares. What it cannot know is added here: names, prefixes, loopback, one proxy, a request timeout.

    python -m serve_apps.serve_config        # writes serve_apps/config.yaml again
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from natwork_ray.errors import PreconditionError

CONFIG = Path(__file__).with_name("config.yaml")
# Import path -> (application name, route prefix). The handle of the loop's judge finds "anomaly" by this name.
APPLICATIONS = {
    "serve_apps.gateway:app": ("gateway", "/"),
    "serve_apps.anomaly:app": ("anomaly", "/api/v1/anomaly"),
    "serve_apps.forecast:app": ("forecast", "/api/v1/forecast"),
    "serve_apps.migration:app": ("migration-models", "/api/v1/migration-models"),
}
# Longer than StreamLimits.stream_s, since Serve counts an event stream as one request.
REQUEST_TIMEOUT_S = 60
_BUILD_TIMEOUT_S = 120
_HEADER = """\
# Made by `python -m serve_apps.serve_config` from the output of `serve build`; edit the deployments instead.
# Loopback only: leaving it takes a proxy with TLS in front (docs/http.md).
"""


def render() -> str:
    """The file's content for the deployments as they are. Takes a few seconds and no cluster.

    Raises:
        PreconditionError: `serve build` failed; the message carries its last line.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "built.yaml")
        # In a process of its own: building imports Ray, and this module may be used where Ray must not be.
        command = [sys.executable, "-c", "from ray.serve.scripts import cli; cli()", "build"]
        done = subprocess.run(
            [*command, *APPLICATIONS, "--app-dir", str(CONFIG.parents[1]), "-o", str(out)],
            capture_output=True,
            text=True,
            timeout=_BUILD_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            last = (done.stderr or done.stdout).strip().splitlines()[-1:]
            raise PreconditionError(f"`serve build` failed: {''.join(last)}", hint="run it by hand to see all of it")
        built: dict[str, Any] = yaml.safe_load(out.read_text(encoding="utf-8"))
    return _HEADER + yaml.safe_dump(_ours(built), sort_keys=False, width=110)


def _ours(built: dict[str, Any]) -> dict[str, Any]:
    for application in built["applications"]:
        application["name"], application["route_prefix"] = APPLICATIONS[application["import_path"]]
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": 8000, "request_timeout_s": REQUEST_TIMEOUT_S},
        "logging_config": built["logging_config"],
        "applications": built["applications"],
    }


if __name__ == "__main__":
    CONFIG.write_text(render(), encoding="utf-8")
