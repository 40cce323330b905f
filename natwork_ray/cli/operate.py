"""`natwork decisions`, `natwork approve`, `natwork mode`: what an operator does while the loop runs."""

from __future__ import annotations

import getpass
from typing import Annotated
from urllib.parse import quote

import typer

from natwork_ray.cli.doors import Doors
from natwork_ray.cli.output import Format, FormatOption, JsonOption, chosen, talk, write_json, write_rows
from natwork_ray.cli.replayed import replayed_loop
from natwork_ray.cli.settings import settle
from natwork_ray.domain.decisions import DecisionStatus, Mode
from natwork_ray.domain.values import plain
from natwork_ray.errors import UsageError

APPROVE_EXAMPLES = """Examples:

natwork decisions --status awaiting_approval

natwork approve d-000004 --note "seen in the graph"

natwork approve d-000005 --refuse
"""

_COLUMNS = ("id", "at_s", "container", "kind", "mitigation", "status", "predicted_downtime_s", "reason")


def decisions(
    status: Annotated[DecisionStatus | None, typer.Option(help="Only those that stand so.")] = None,
    container: Annotated[str | None, typer.Option(help="Only those about this container.")] = None,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """What was decided and why, read from the journal: while the loop runs, and afterwards."""
    rows = [
        plain(d)
        for d in replayed_loop(settle().state_dir).decisions()
        if (status is None or d.status is status) and (container is None or d.container == container)
    ]
    write_rows(rows, _COLUMNS, chosen(output, as_json), title="decisions")


def approve(
    decision: Annotated[str, typer.Argument(help="Id of a decision that awaits approval, e.g. d-000004.")],
    refuse: Annotated[bool, typer.Option("--refuse", help="Refuse instead of granting.")] = False,
    note: Annotated[str, typer.Option(help="Why; goes into the audit log.")] = "",
    by: Annotated[str | None, typer.Option(help="Who; goes into the audit log (default: the user's name).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Grant or refuse a decision of a running loop in mode approve."""
    answer = Doors(settle().state_dir).change(
        "POST",
        f"/decisions/{quote(decision, safe='')}/approval",
        {"granted": not refuse, "by": by or user_name(), "note": note},
    )
    if as_json:
        write_json(answer)
    else:
        talk.print(f"{decision} is {answer['status']}")


def mode(
    new: Annotated[Mode, typer.Argument(help="observe, approve or act.")],
    by: Annotated[str | None, typer.Option(help="Who; goes into the audit log (default: the user's name).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Change how much the running loop may do by itself."""
    answer = Doors(settle().state_dir).change("PUT", "/mode", {"mode": new.value, "by": by or user_name()})
    if as_json:
        write_json(answer)
    else:
        talk.print(f"mode is {answer['mode']}")


def user_name() -> str:
    """Who gives this command.

    Raises:
        UsageError: the user has no name.
    """
    try:
        return getpass.getuser()
    except (KeyError, OSError) as error:
        raise UsageError("this process's user has no name", hint="say who with --by NAME") from error
