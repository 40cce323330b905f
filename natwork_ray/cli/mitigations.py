"""`natwork mitigations`: D3.3 Table 4 as Kubernetes objects: listed, written out, checked, applied.

`render` needs no cluster: it writes what the loop would apply, for a container of the emulated scenario or for one that
is described by options. With `--cluster` the container is looked up where the configuration says. `--apply` goes
through the same adapter as the loop; it asks first, and never changes more than one workload.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
import time
from dataclasses import replace
from enum import StrEnum
from typing import Annotated, Any

import typer
import yaml

from natwork_ray.adapters.kubernetes_clusters import cluster_settings, kubernetes_cluster
from natwork_ray.adapters.kubernetes_mitigations import ELSEWHERE, EXAMPLE_SOURCE, Rendering, mitigation, renderable
from natwork_ray.adapters.kubernetes_objects import Verb, Workload
from natwork_ray.adapters.kubernetes_rbac import documents
from natwork_ray.adapters.kubernetes_schemas import OLDEST, validate, validate_document
from natwork_ray.cli.output import Format, FormatOption, JsonOption, chosen, printable, talk, write_json, write_rows
from natwork_ray.cli.settings import settle
from natwork_ray.config import Config
from natwork_ray.control.catalogue import CATALOGUE
from natwork_ray.domain.anomaly import AnomalyKind
from natwork_ray.domain.decisions import MitigationKind
from natwork_ray.domain.topology import Container
from natwork_ray.emulation.scenarios import scenario
from natwork_ray.errors import RefusedError, UsageError

app = typer.Typer(no_args_is_help=True, help="D3.3 Table 4 as Kubernetes objects.")

RENDER_EXAMPLES = """Examples:

natwork mitigations render --anomaly high_cpu --action vertical_cpu --container web --validate

natwork mitigations render --anomaly step_load --action predictive_scale --container web -o json

natwork mitigations render --anomaly high_cpu --action horizontal_scale --container web --apply --dry-run server
"""


class Written(StrEnum):
    """How manifests are written."""

    YAML = "yaml"
    JSON = "json"


class DryRun(StrEnum):
    """What `--apply` does in the end."""

    NONE = "none"
    SERVER = "server"


@app.command("list")
def list_(output: FormatOption = Format.TABLE, as_json: JsonOption = False) -> None:
    """Every anomaly with its actions, and the objects that they become."""
    config = settle()
    workload = _described(config, None)
    rows = []
    able = set(renderable())
    for anomaly, entries in CATALOGUE.items():
        for entry in entries:
            known = (anomaly, entry.mitigation) in able
            found = (
                mitigation(anomaly, entry.mitigation, workload, cluster_settings(config.kubernetes)) if known else None
            )
            kinds = [m.kind if m.verb is Verb.APPLY else f"{m.kind} patch" for m in found.manifests] if found else []
            rows.append({
                "anomaly": str(anomaly),
                "action": str(entry.mitigation),
                "table_4": entry.table_4,
                "effect": entry.effect,
                "objects": kinds,
                "needs": list(found.needs) if found else ["a person"],
            })  # fmt: skip
    write_rows(rows, ("anomaly", "action", "table_4", "objects"), chosen(output, as_json), title="mitigations")


@app.command("render", epilog=RENDER_EXAMPLES)
def render(
    anomaly: Annotated[AnomalyKind, typer.Option(help="The anomaly that is acted upon.")],
    action: Annotated[MitigationKind, typer.Option(help="The action: natwork mitigations list has them.")],
    container: Annotated[str, typer.Option(help="The container (with --cluster: the Deployment).")],
    replicas: Annotated[int | None, typer.Option(min=1, max=64, help="Replicas it has now.")] = None,
    cpu_limit: Annotated[float | None, typer.Option(min=0.001, help="CPU limit it has now, in cores.")] = None,
    memory_limit: Annotated[float | None, typer.Option(min=1, help="Memory limit it has now, in bytes.")] = None,
    source: Annotated[str, typer.Option(help="Network to block.")] = EXAMPLE_SOURCE,
    target: Annotated[str, typer.Option(help="Node to prefer in a move.")] = ELSEWHERE,
    key: Annotated[str | None, typer.Option(help="Idempotency key of the instruction.")] = None,
    cluster: Annotated[bool, typer.Option("--cluster", help="Look the container up in the cluster.")] = False,
    check: Annotated[
        bool, typer.Option("--validate", help="Check every object against the published schemas.")
    ] = False,
    apply: Annotated[bool, typer.Option("--apply", help="Apply it to the cluster (implies --cluster).")] = False,
    dry_run: Annotated[
        DryRun | None, typer.Option(help="With --apply: server lets the API server check it and change nothing.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --apply: do not ask.")] = False,
    output: Annotated[Written, typer.Option("-o", "--output", help="Format of the objects on stdout.")] = Written.YAML,
) -> None:
    """The Kubernetes objects of one action: written out, and checked or applied where that is asked for."""
    if (dry_run is not None or yes) and not apply:
        raise UsageError("--dry-run and --yes go with --apply", hint="add --apply")
    config = settle(kubernetes__dry_run=dry_run.value if dry_run else None)
    if cluster or apply:
        if (replicas, cpu_limit, memory_limit) != (None, None, None):
            raise UsageError("replicas and limits are the cluster's to say", hint="leave these options out")
        workload = _looked_up(config, container)
    else:
        usual = _described(config, container)
        workload = replace(
            usual,
            replicas=replicas or usual.replicas,
            cpu_limit_cores=cpu_limit or usual.cpu_limit_cores,
            memory_limit_bytes=memory_limit or usual.memory_limit_bytes,
        )
    found = mitigation(
        anomaly, action, workload, cluster_settings(config.kubernetes),
        key=key or f"cli-{secrets.token_hex(6)}/0", at_s=time.time(), source=source, target=target,
    )  # fmt: skip
    if apply:
        _applied(config, found, yes=yes, output=output)
        return
    checked = [validate(m, version=v) for m in found.manifests for v in (OLDEST, None)] if check else []
    _write([m.document() for m in found.manifests], output)
    if check:
        releases = sorted({c for c in checked if c and c != "custom"}, key=lambda r: [int(n) for n in r.split(".")])
        against = f"the schemas of Kubernetes {' and '.join(releases)}" if releases else "reduced schemas of their CRDs"
        talk.print(f"{len(found.manifests)} object(s) valid against {against}", soft_wrap=True)
    for need in found.needs:
        talk.print(f"needs {printable(need)}", soft_wrap=True)


@app.command("rbac")
def rbac(
    namespace: Annotated[str | None, typer.Option(help="The namespace that may be changed.")] = None,
    output: Annotated[Written, typer.Option("-o", "--output", help="Format of the objects on stdout.")] = Written.YAML,
) -> None:
    """The account and the rights that `natwork` needs in a cluster, and no more: for its administrator to apply."""
    config = settle(kubernetes__namespace=namespace)
    found = documents(cluster_settings(config.kubernetes), namespace=config.kubernetes.namespace)
    for document in found:
        validate_document(document)
    _write(found, output)


def _described(config: Config, name: str | None) -> Workload:
    containers = scenario(config.emulation.scenario).topology.containers
    found = next((c for c in containers if name in (None, c.name)), None)
    if found is None and name is not None:
        first = containers[0]
        found = Container(
            name=name, service=name, network_service=name, slice=first.slice, node="", replicas=1,
            cpu_limit_cores=1.0, memory_limit_bytes=512.0 * 2**20,
        )  # fmt: skip
    assert found is not None  # noqa: S101 - a scenario without containers cannot be loaded
    return Workload.of(found, config.kubernetes.namespace)


def _looked_up(config: Config, name: str) -> Workload:
    cluster = kubernetes_cluster(config.kubernetes, now_s=time.time)
    return asyncio.run(cluster.workload(name))


def _applied(config: Config, found: Rendering, *, yes: bool, output: Written) -> None:
    server = config.kubernetes.dry_run == "server"
    where = f"namespace {config.kubernetes.namespace}" + (" (dry run)" if server else "")
    if not (yes or server):
        talk.print(f"to {where}:", soft_wrap=True)
        for manifest in found.manifests:
            talk.print(f"  {manifest.verb} {manifest.kind} {printable(manifest.name)}", soft_wrap=True)
        if not sys.stdin.isatty():
            raise RefusedError("nobody is there to ask", hint="add --yes, or --dry-run server")
        typer.confirm("Apply?", abort=True, err=True)
    cluster = kubernetes_cluster(config.kubernetes, now_s=time.time)
    outcome = asyncio.run(cluster.carry_out(found.instruction))
    document = {"key": outcome.key, "done": outcome.done, "downtime_s": outcome.downtime_s, "detail": outcome.detail}
    if output is Written.JSON:
        write_json(document)
    else:
        _write([document], output)


def _write(found: list[dict[str, Any]], output: Written) -> None:
    if output is Written.JSON:
        write_json({"apiVersion": "v1", "kind": "List", "items": found})
        return
    # Through JSON: YAML would refer from one part to an equal one by an anchor.
    whole = json.loads(json.dumps(found))
    sys.stdout.write("---\n".join(yaml.safe_dump(item, sort_keys=False, allow_unicode=True) for item in whole))
    sys.stdout.flush()
