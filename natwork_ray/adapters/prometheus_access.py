"""Where a Prometheus server is, and how we prove who we are: the parts of `prometheus.*` that must not go wrong.

Rules kept: no password in a URL, which ends up in logs; no token in the clear to another machine; a token is read when
it is needed, because Kubernetes renews it.

    >>> checked_url(PrometheusConfig(url="https://prometheus.example.org/mimir/"))
    'https://prometheus.example.org/mimir'
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from urllib.parse import urlsplit

from natwork_ray.config import PrometheusConfig
from natwork_ray.errors import ConfigError, PreconditionError

MAX_TOKEN_BYTES = 65_536
_SAID = 300


def checked_url(config: PrometheusConfig) -> str:
    """The server's URL without a slash at its end.

    Raises:
        ConfigError: no URL of a server, or a token would travel in the clear.
    """
    hint = "such as http://127.0.0.1:9090 or https://prometheus.example.org/prefix"
    try:
        parts = urlsplit(config.url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"prometheus.url = {config.url[:_SAID]!r}: {error}", hint=hint) from error
    if parts.scheme not in ("http", "https") or not host or not config.url.isprintable() or " " in config.url:
        raise ConfigError(f"prometheus.url = {config.url[:_SAID]!r} is no URL of a server", hint=hint)
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            "prometheus.url holds a name or password", hint="put a token into a file: prometheus.token_file"
        )
    if parts.query or parts.fragment:
        raise ConfigError(f"prometheus.url = {config.url[:_SAID]!r} goes on after the path", hint=hint)
    if config.token_file is not None and parts.scheme == "http" and not _loopback(host):
        raise ConfigError(
            f"a token would travel to {host} in the clear", hint="use https, or leave prometheus.token_file out"
        )
    return config.url.rstrip("/")


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def existing(path: Path, key: str) -> Path:
    """The file that a key of the configuration names.

    Raises:
        ConfigError: it is not there.
    """
    if not path.expanduser().is_file():
        raise ConfigError(f"{key} = {path}: there is no such file", hint="name a file, or leave the key out")
    return path.expanduser()


def read_token(file: Path) -> str:
    """The bearer token that a file holds.

    Raises:
        PreconditionError: it cannot be read, or holds none.
    """
    try:
        with file.expanduser().open("rb") as stream:
            text = stream.read(MAX_TOKEN_BYTES + 1).decode("ascii").strip()
    except (OSError, UnicodeDecodeError, RuntimeError) as error:
        raise PreconditionError(
            f"cannot read prometheus.token_file {file}: {error}", hint="it holds one line, the token"
        ) from error
    if not text or len(text) > MAX_TOKEN_BYTES or not text.isprintable() or " " in text:
        raise PreconditionError(f"{file} holds no token", hint="it holds one line, the token")
    return text
