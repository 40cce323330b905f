"""The configuration: one typed, frozen class; file < environment < flags; unknown keys fail.

    natwork.toml                 [loop]\n step_s = 10
    NATWORK_LOOP__STEP_S=10      two underscores between section and key
    --set loop.step_s=10         before any command

Every field has a default and a sentence; `docs/configuration.md` is generated from them and a test compares.
"""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from natwork_ray.domain.decisions import Mode
from natwork_ray.errors import ConfigError

ENV_PREFIX = "NATWORK_"
# Read by scripts and the command line directly, not part of the typed configuration.
ENV_OTHER = frozenset({"NATWORK_CONFIG", "NATWORK_API_TOKEN", "NATWORK_TESTBED_DIR"})


class Section(BaseModel):
    """Base of all sections: frozen, strict about unknown keys and about NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


class LoopConfig(Section):
    """How the loop turns."""

    mode: Mode = Field(default=Mode.OBSERVE, description="observe (recommend), approve (queue for a person) or act.")
    step_s: float = Field(default=10.0, gt=0, le=3600, description="Seconds between telemetry samples and loop turns.")
    window: int = Field(default=24, ge=4, le=360, description="Samples per window that the detector sees.")
    commissioning_s: float = Field(
        default=3600.0, ge=60, description="Normal operation from which profiles are learnt."
    )
    approval_lapse_s: float = Field(default=900.0, gt=0, description="A decision not approved by then lapses.")


class AlarmConfig(Section):
    """When a flagged window becomes an alarm. What is not set here comes from the model's card where it says so."""

    votes_needed: int = Field(default=2, ge=1, le=60, description="Flagged windows needed among the last `votes_of`.")
    votes_of: int = Field(default=3, ge=1, le=60, description="Length of the vote.")
    fast_score: float = Field(
        default=0.98,
        ge=0,
        le=1,
        description="A single window with this stage 1 score and `fast_deviation` alarms at once.",
    )
    fast_deviation: float = Field(
        default=8.0, ge=0, description="Robust standard deviations that the fast path asks for."
    )
    hold: int = Field(
        default=3, ge=1, le=60, description="Turns without a flag that close an alarm; until then any flag confirms it."
    )
    cooldown_s: float = Field(
        default=300.0, ge=0, description="No second decision for a container and kind of anomaly within this time."
    )
    calm_s: float = Field(
        default=900.0, gt=0, description="Resources that were added go back after this long without an alarm."
    )

    @model_validator(mode="after")
    def _vote_can_be_reached(self) -> Self:
        if self.votes_needed > self.votes_of:
            raise ValueError(f"votes_needed = {self.votes_needed} can never be reached in votes_of = {self.votes_of}")
        return self


class SlaConfig(Section):
    """The downtime budget of each CNF."""

    availability: float = Field(default=0.9995, gt=0, lt=1, description="Agreed availability (D3.3 section 2.2).")
    window_s: float = Field(
        default=2_592_000.0, gt=0, description="Accounting window in seconds: 86400 day, 604800 week, 2592000 month."
    )


class HttpConfig(Section):
    """The HTTP doors."""

    host: str = Field(default="127.0.0.1", description="Address that Serve listens on; loopback unless told otherwise.")
    port: int = Field(default=8000, ge=1, le=65535, description="Port that Serve listens on.")
    max_body_bytes: int = Field(default=16_777_216, ge=1024, description="Larger request bodies are refused with 413.")


class ReplayConfig(Section):
    """Recorded telemetry."""

    folder: Path | None = Field(default=None, description="Recordings in iAnomaly's format (backend = replay).")
    run: str | None = Field(
        default=None, description="Name of the run to replay; by default the one with most services."
    )


class EmulationConfig(Section):
    """The emulated testbed."""

    scenario: str = Field(default="smart-city", description="Name of the scenario: see `natwork demo --help`.")
    seed: int = Field(default=7, ge=0, le=2**32 - 1, description="Seed of everything random in the emulation.")
    duration_s: float = Field(
        default=5400.0, gt=0, le=2_592_000, description="Length of a demo run on the virtual clock."
    )
    speed: float = Field(default=10.0, gt=0, description="Virtual seconds per second of wall time under `natwork up`.")


class MigrationConfig(Section):
    """Live migration, on every backend."""

    selector: Path | None = Field(
        default=None,
        description="Learnt method selector (`natwork train selector`). Without it the shipped one, which knows "
        "emulated migrations, chooses in the emulated world, and the equations choose on the testbed.",
    )
    weight: float = Field(
        default=0.2, ge=0, le=1, description="Share of total time against downtime when a method is chosen by `auto`."
    )
    observe_s: float = Field(
        default=1.0, gt=0, le=60, description="How long a container is measured before a method is chosen, seconds."
    )
    max_rounds: int = Field(default=5, ge=1, le=30, description="Pre-copy rounds at most.")
    transfer_timeout_s: float = Field(
        default=900.0, gt=0, le=86_400, description="A transfer of images, volume or lazy pages is lost after so long."
    )
    checkpoint_timeout_s: float = Field(
        default=120.0, gt=0, le=3600, description="A pre-dump, dump or restore is lost after so long."
    )


class PrometheusConfig(Section):
    """Live telemetry from a Prometheus server (docs/prometheus.md). Samples are taken every `loop.step_s`."""

    url: str = Field(default="http://127.0.0.1:9090", description="Where the server is; a path prefix is allowed.")
    queries: Path | None = Field(
        default=None, description="File of queries instead of the shipped one (TOML): one query per metric."
    )
    scrape_interval_s: float = Field(
        default=0.0,
        ge=0,
        le=600,
        description="How often the server scrapes, seconds; rates look back over four of them. 0: every `loop.step_s`.",
    )
    timeout_s: float = Field(
        default=8.0,
        gt=0,
        le=600,
        description="A window or a node survey has to be answered within so long, retries included.",
    )
    max_body_bytes: int = Field(
        default=16_777_216,
        ge=1024,
        le=2**31,
        description="A larger answer to one query, unpacked, is refused. Four are read at a time.",
    )
    token_file: Path | None = Field(
        default=None,
        description="File with a bearer token; read at every request, never sent in the clear over a network.",
    )
    ca_file: Path | None = Field(
        default=None, description="Certificates that the server's must descend from, instead of the usual ones (PEM)."
    )
    selector: str = Field(
        default='container!="",container!="POD"',
        description="Which containers: PromQL label matchers, put into every query in place of `$selector`.",
    )
    service_label: str = Field(
        default="container", description="Label that names a container's service, whose profile it is judged by."
    )
    node_label: str = Field(default="instance", description="Label that names the node.")
    exporter_host: str = Field(
        default="127.0.0.1", description="Address at which LiMi agents answer scrapes; loopback unless told otherwise."
    )
    exporter_port: int = Field(
        default=0,
        ge=0,
        le=65_000,
        description="LiMi agents export their containers to scrapes from this port on, a port per node. 0: not at all.",
    )


class KubernetesConfig(Section):
    """The cluster that mitigations are applied to (docs/kubernetes.md)."""

    kubeconfig: Path | None = Field(
        default=None, description="Credentials file. Without it: the pod's own account, else ~/.kube/config."
    )
    context: str = Field(default="", description="Context of the credentials file; empty for its current one.")
    namespace: str = Field(
        default="default",
        pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$",
        description="The one namespace that anything is changed in.",
    )
    dry_run: Literal["none", "server"] = Field(
        default="none", description="server: the API server checks every change and makes none."
    )
    timeout_s: float = Field(default=10.0, gt=0, le=300, description="Longest wait for one answer of the API server.")
    mesh: Literal["istio", "gateway", "none"] = Field(
        default="istio", description="Which objects switch retries: Istio's, the Gateway API's, or there is no mesh."
    )
    predictive: Literal["external-metric", "keda"] = Field(
        default="external-metric",
        description="How forecasts reach the autoscaler: an external metric, or KEDA asking Prometheus.",
    )
    prometheus_url: str = Field(
        default="http://prometheus.monitoring:9090", description="Where KEDA asks for forecasts, seen from the cluster."
    )
    forecast_horizon_s: int = Field(
        default=100, ge=1, le=86_400, description="Which forecast autoscalers follow: the one so many seconds ahead."
    )
    requests_per_replica: float = Field(
        default=50.0, gt=0, description="Requests per second that one replica carries, where nothing was measured."
    )
    vpa_mode: Literal["Off", "Initial", "Recreate", "InPlaceOrRecreate"] = Field(
        default="Initial", description="Update mode of vertical autoscalers; Initial never evicts a running pod."
    )


class SdnConfig(Section):
    """Who is told of suspect flows (docs/sdn.md)."""

    kind: Literal["none", "open-vswitch", "webhook", "onos"] = Field(
        default="none", description="Controller of a real network. The emulated and the replayed world have their own."
    )
    bridge: str = Field(
        default="br0",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,14}$",
        description="Open vSwitch bridge that gets the rules.",
    )
    database: str = Field(
        default="", description="OVSDB's address, e.g. unix:/run/openvswitch/db.sock; empty for that."
    )
    management: str = Field(default="", description="The bridge's OpenFlow address; empty for the machine's own.")
    rate_packets_per_s: int = Field(
        default=100, ge=1, le=10_000_000, description="What `rate_limit` lets through for one alert."
    )
    mirror_port: str = Field(
        default="",
        pattern=r"^([A-Za-z0-9][A-Za-z0-9_.-]{0,14})?$",
        description="Port that `inspect` copies packets to.",
    )
    url: str = Field(default="", description="A controller's address (webhook, onos).")
    token_file: Path | None = Field(
        default=None, description="File with the controller's token, or user:password; readable by its owner only."
    )
    devices: str = Field(default="", description="ONOS devices that get the rules, separated by commas.")
    timeout_s: float = Field(default=5.0, gt=0, le=60, description="Longest wait for one answer of the controller.")


class Config(Section):
    """The whole configuration."""

    backend: Literal["emulated", "replay", "testbed"] = Field(
        default="emulated",
        description="Which world the loop acts on: an emulated one, recordings, or the real testbed on this machine.",
    )
    telemetry: Literal["own", "prometheus"] = Field(
        default="own",
        description="Where a real backend's samples come from: what it sees itself, or a Prometheus server.",
    )
    state_dir: Path = Field(
        default=Path("~/.local/state/natwork"), description="Journal, keys, tokens and logs; created with mode 0700."
    )
    data_dir: Path | None = Field(
        default=None, description="Folder of public data sets, for evaluation (docs/data.md)."
    )
    model: Path | None = Field(default=None, description="Profiler model to serve instead of the shipped one.")
    loop: LoopConfig = LoopConfig()
    alarm: AlarmConfig = AlarmConfig()
    sla: SlaConfig = SlaConfig()
    http: HttpConfig = HttpConfig()
    emulation: EmulationConfig = EmulationConfig()
    replay: ReplayConfig = ReplayConfig()
    migration: MigrationConfig = MigrationConfig()
    kubernetes: KubernetesConfig = KubernetesConfig()
    sdn: SdnConfig = SdnConfig()
    prometheus: PrometheusConfig = PrometheusConfig()


_MAX_FILE_BYTES = 1_048_576
_SECTIONS = frozenset(n for n, f in Config.model_fields.items() if isinstance(f.default, Section))


def load_config(
    *,
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Config:
    """Merge file, environment and flags (dotted keys), later ones winning, and check the result.

    An environment variable that is empty counts as not set.

    Raises:
        ConfigError: unreadable file, unknown key, or value out of range; the message names the source and the key.
    """
    environ = os.environ if environ is None else environ
    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    path = file or (Path(environ["NATWORK_CONFIG"]) if environ.get("NATWORK_CONFIG") else None)
    if path is not None:
        for key, item in _flatten(_read_toml(path)):
            _put(merged, sources, key, item, source=str(path))
    for name, text in environ.items():
        if name.startswith(ENV_PREFIX) and name not in ENV_OTHER:
            _put(merged, sources, name[len(ENV_PREFIX) :].lower().replace("__", "."), text or None, source=name)
    for key, item in (flags or {}).items():
        _put(merged, sources, key, item, source=f"--set {key}")
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        source = sources.get(key) or ", ".join(sorted({s for k, s in sources.items() if k.startswith(f"{key}.")}))
        raise ConfigError(
            f"{source}: {key} = {first['input']!r}: {first['msg']}",
            hint="see docs/configuration.md for the range",
        ) from error


def to_toml(config: Config) -> str:
    """What was set, as a TOML file that `load_config` reads back to an equal configuration.

    Defaults nobody asked for stay out, so that the reader too can tell a choice from a default.
    """
    lines: list[str] = []
    sections: list[str] = []
    for name, item in config.model_dump(mode="json", exclude_none=True, exclude_unset=True).items():
        if isinstance(item, dict):
            # JSON's strings, numbers and booleans are TOML's as well.
            sections += ["", f"[{name}]", *(f"{key} = {json.dumps(inner)}" for key, inner in item.items())]
        else:
            lines.append(f"{name} = {json.dumps(item)}")
    return "\n".join((*lines, *sections)) + "\n"


def known_keys() -> dict[str, FieldInfo]:
    """Every dotted key with its pydantic field."""
    keys: dict[str, FieldInfo] = {}
    for name, field in Config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            keys.update({f"{name}.{inner}": f for inner, f in field.annotation.model_fields.items()})
        else:
            keys[name] = field
    return keys


def configuration_table() -> str:
    """Markdown table of every key: default, range, environment variable and meaning. docs/configuration.md holds it."""
    rows = ["| Key | Default | Allowed | Environment variable | Meaning |", "|---|---|---|---|---|"]
    for key, field in known_keys().items():
        default = "none" if field.default is None else f"`{field.default}`"
        variable = ENV_PREFIX + key.upper().replace(".", "__")
        rows.append(f"| `{key}` | {default} | {_allowed(field)} | `{variable}` | {field.description} |")
    return "\n".join(rows) + "\n"


def _allowed(field: FieldInfo) -> str:
    kind = field.annotation
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return ", ".join(f"`{member}`" for member in kind)
    options = [a for a in get_args(kind) if isinstance(a, str)]
    if options:
        return ", ".join(f"`{option}`" for option in options)
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    bounds = [f"{signs[n]} {getattr(m, n)}" for m in field.metadata for n in signs if hasattr(m, n)]
    name = "integer" if kind is int else "number" if kind is float else "text" if kind is str else "path"
    return ", ".join([name, *bounds])


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
        if len(data) > _MAX_FILE_BYTES:
            raise ConfigError(f"{path} is larger than {_MAX_FILE_BYTES} bytes", hint="it must be a TOML file")
        return tomllib.loads(data.decode("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read configuration file {path}: {error}", hint="it must be a TOML file") from error


def _flatten(table: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, item in table.items():
        if isinstance(item, Mapping) and (item or f"{prefix}{key}" in _SECTIONS):
            flat += _flatten(item, f"{prefix}{key}.")
        else:
            flat.append((prefix + key, item))
    return flat


def _put(merged: dict[str, Any], sources: dict[str, str], key: str, item: Any, *, source: str) -> None:
    keys = known_keys()
    if key not in keys:
        close = difflib.get_close_matches(key, keys, n=1)
        raise ConfigError(
            f"{source}: there is no configuration key {key!r}",
            hint=f"did you mean {close[0]!r}?" if close else "docs/configuration.md lists them all",
        )
    if item is None:
        return
    if isinstance(item, bool):  # would pass for the number 1 or 0; no key is a truth value
        raise ConfigError(f"{source}: {key} = {item}", hint="see docs/configuration.md for what it takes")
    sources[key] = source
    section, _, inner = key.rpartition(".")
    if section:
        merged.setdefault(section, {})[inner] = item
    else:
        merged[inner] = item
