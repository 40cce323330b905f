"""`natwork profile`: what is taken for a service's normal operation, whether it still holds, and learning it anew."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from natwork_ray.cli.doors import Doors
from natwork_ray.cli.operate import user_name
from natwork_ray.cli.output import Format, FormatOption, JsonOption, chosen, talk, write_json, write_rows
from natwork_ray.cli.replayed import replayed_loop
from natwork_ray.cli.settings import settle
from natwork_ray.domain.values import plain
from natwork_ray.errors import NotFoundError

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Profiles of normal operation (docs/profiling.md).")
EXAMPLES = """Examples:

natwork profile show --service amf

natwork profile drift

natwork profile relearn --service amf --from 7200 --to 10800 --note "release 2.1"
"""

ServiceOption = Annotated[str | None, typer.Option(help="Only this service.")]


@app.command("show", epilog=EXAMPLES)
def show(service: ServiceOption = None, output: FormatOption = Format.TABLE, as_json: JsonOption = False) -> None:
    """What is taken for normal, per service and metric, and when it was learnt; read from the journal."""
    in_use = plain(replayed_loop(settle().state_dir).profiles())
    profiles = [p for p in in_use["profiles"] if service in (None, p["service"])]
    if service is not None and not profiles:
        raise NotFoundError(f"{service!r} has no profile of its own", hint="the fleet-wide one stands in (cold start)")
    output = chosen(output, as_json)
    if output is Format.JSON:
        write_json({"profiles": profiles, "relearning": in_use["relearning"]})
        return
    rows: list[dict[str, Any]] = [
        {"service": p["service"], "from_s": p["from_s"], "to_s": p["to_s"], **metric}
        for p in profiles
        for metric in p["ranges"]
    ]
    columns = ("service", "metric", "low", "centre", "high", "samples", "from_s", "to_s")
    write_rows(rows, columns, output, title="profiles")
    for p in profiles:
        if p["unprofiled"]:
            talk.print(f"{p['service']}: not measured then, so never deviating: {', '.join(p['unprofiled'])}")


@app.command("drift", epilog=EXAMPLES)
def drift(service: ServiceOption = None, output: FormatOption = Format.TABLE, as_json: JsonOption = False) -> None:
    """Services whose normal operation no longer fits their profile, as last checked; read from the journal."""
    found = [
        d for d in plain(replayed_loop(settle().state_dir).profiles())["drifts"] if service in (None, d["service"])
    ]
    output = chosen(output, as_json)
    if output is Format.JSON:
        write_json({"drifts": found})
        return
    rows = [{"service": d["service"], "at_s": d["at_s"], **metric} for d in found for metric in d["metrics"]]
    write_rows(rows, ("service", "metric", "shift", "outside", "psi", "at_s"), output, title="drifts")
    if not found:
        talk.print("No drift was seen (the last four hours are looked at, every ten minutes at the default step).")


@app.command("relearn", epilog=EXAMPLES)
def relearn(
    service: Annotated[str, typer.Option(help="Whose profile.")],
    from_s: Annotated[
        float | None, typer.Option("--from", min=0, help="Start, seconds on the backend's clock (default: 1 h before).")
    ] = None,
    to_s: Annotated[float | None, typer.Option("--to", min=0, help="End (default: now).")] = None,
    force: Annotated[bool, typer.Option("--force", help="Also from a stretch with alarms: they were false.")] = False,
    note: Annotated[str, typer.Option(help="Why; goes into the audit log.")] = "",
    by: Annotated[str | None, typer.Option(help="Who; goes into the audit log (default: the user's name).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Learn a profile anew from normal operation. Refused where the service was in alarm, unless forced."""
    body = {"by": by or user_name(), "note": note, "from_s": from_s, "to_s": to_s, "force": force}
    answer = Doors(settle().state_dir).change("POST", f"/profiles/{quote(service, safe='')}/relearn", body)
    if as_json:
        write_json(answer)
    else:
        talk.print(
            f"{service} is learnt anew from {answer['from_s']:.0f} to {answer['to_s']:.0f} s within the next turns; "
            "`natwork profile show` says when it is."
        )
