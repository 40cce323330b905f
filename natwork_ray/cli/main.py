"""`natwork`: the command line.

Exit codes: 0 done, 1 failed, 2 usage, 3 precondition missing, 4 verification failed, 5 refused by policy, 6 timed out
(docs/cli.md); 130 when interrupted, as shells have it. With --json, stdout holds one JSON object and nothing else.

Ray reads its settings when it is imported, and importing it takes a second. So commands import agents and Serve apps
only after they have set the environment, inside the functions that need them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from natwork_ray import __version__
from natwork_ray.cli import (
    audit,
    bench,
    causes,
    demo,
    detecting,
    doctor,
    exporter,
    forecasting,
    lifecycle,
    migrate,
    migrations,
    mitigations,
    models,
    operate,
    profiles,
    reproducing,
    selector,
    testbed,
    train,
)
from natwork_ray.cli.output import printable, talk
from natwork_ray.cli.settings import remember
from natwork_ray.errors import ExitCode, NatworkError

app = typer.Typer(
    name="natwork",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Intent-based, adaptive security for 6G services: one closed loop on Ray.\n\n"
    "Start with `natwork demo`. Exit codes: 0 done, 1 failed, 2 usage, 3 precondition missing, "
    "4 verification failed, 5 refused by policy, 6 timed out.",
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def common(
    config: Annotated[
        Path | None, typer.Option(help="Configuration file (TOML). Environment NATWORK_... and --set override it.")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set a configuration key, e.g. --set loop.mode=approve."),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of every command."""
    remember(config, assignments or [])


app.command("demo", epilog=demo.EXAMPLES)(demo.demo)
app.command("up", epilog=lifecycle.UP_EXAMPLES)(lifecycle.up)
app.command("status")(lifecycle.status)
app.command("down")(lifecycle.down)
app.command("doctor", epilog=doctor.EXAMPLES)(doctor.doctor)
app.command("detect", epilog=detecting.EXAMPLES)(detecting.detect)
app.command("decisions")(operate.decisions)
app.command("approve", epilog=operate.APPROVE_EXAMPLES)(operate.approve)
app.command("mode")(operate.mode)
app.command("migrate", epilog=migrate.EXAMPLES)(migrate.migrate)
app.command("migrate-service", epilog=migrate.SERVICE_EXAMPLES)(migrate.migrate_service)
app.command("exporter", epilog=exporter.EXAMPLES)(exporter.exporter)
app.add_typer(migrate.app, name="migration")
app.add_typer(migrations.app, name="migrations")
app.add_typer(mitigations.app, name="mitigations")
app.add_typer(models.app, name="models")
app.add_typer(testbed.app, name="testbed")
app.add_typer(audit.app, name="audit")
# Both groups are shared: each of these modules has added its commands to them when it was imported.
_ADD_TO_TRAIN_AND_REPRODUCE = (forecasting, reproducing, selector)
app.add_typer(train.train_app, name="train")
app.add_typer(train.reproduce_app, name="reproduce")
app.add_typer(bench.app, name="bench")
app.add_typer(causes.app, name="causes")
app.add_typer(profiles.app, name="profile")


def main() -> None:
    """Entry point of the console script. Typer itself ends with 2 on usage errors, 1 on a closed pipe."""
    try:
        app(prog_name="natwork")
    except NatworkError as error:
        what, hint, code = error.what, error.hint, error.exit_code
    except OSError as error:  # a file that cannot be written, a full disk: the system's own words say it best
        what, hint, code = str(error), "check the path, its permissions and the free space", ExitCode.FAILED
    talk.print(f"error: {printable(what)}", style="red", soft_wrap=True)
    talk.print(f"hint: {printable(hint)}", soft_wrap=True)
    sys.exit(int(code))


if __name__ == "__main__":
    main()
