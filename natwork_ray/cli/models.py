"""`natwork models`: versions of the models that a running system serves."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from natwork_ray.cli.doors import Doors
from natwork_ray.cli.operate import user_name
from natwork_ray.cli.output import Format, FormatOption, JsonOption, chosen, talk, write_json, write_rows
from natwork_ray.cli.settings import settle
from natwork_ray.errors import InputError, NotFoundError, PreconditionError, UsageError

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Versions of the models that the running system serves."
)
EXAMPLES = """Examples:

natwork train profiler --out new.safetensors

natwork models publish profiler new.safetensors

natwork models use profiler 3f9a2c     (the first digits of its digest are enough)

natwork models rollback profiler
"""
_MAX_BYTES = 64 * 2**20
_MIN_DIGITS = 6

Name = Annotated[str, typer.Argument(help="profiler or forecaster.")]
By = Annotated[str | None, typer.Option(help="Who; goes into the audit log (default: the user's name).")]
Note = Annotated[str, typer.Option(help="Why; goes into the audit log.")]


@app.command("list", epilog=EXAMPLES)
def list_models(output: FormatOption = Format.TABLE, as_json: JsonOption = False) -> None:
    """Every version that is kept, newest first, and which one answers."""
    output = chosen(output, as_json)
    models = _models(Doors(settle().state_dir))
    if output is Format.JSON:
        write_json({"models": models})
        return
    columns = ("model", "sha256", "in_use", "size_bytes", "saved", "chosen_by", "note")
    write_rows([row for model in models for row in _rows(model)], columns, output, title="versions")


@app.command("publish", epilog=EXAMPLES)
def publish(
    name: Name,
    file: Annotated[Path, typer.Argument(help="The model file.")],
    use: Annotated[bool, typer.Option("--use", help="Also let it answer at once.")] = False,
    by: By = None,
    note: Note = "",
    as_json: JsonOption = False,
) -> None:
    """Hand a version over. A replica tries it first; it is kept, and does not answer until it is used."""
    try:
        with file.open("rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise PreconditionError(f"cannot read {file}: {error}", hint="`natwork train` makes model files") from error
    if len(data) > _MAX_BYTES:
        raise InputError(f"{file} is larger than {_MAX_BYTES} bytes", hint="it must be a model file")
    doors = Doors(settle().state_dir)
    version = doors.upload(f"/models/{_quoted(name)}/versions", data)
    if use:
        _use(doors, name, version["sha256"], by, note)
    if as_json:
        write_json({**version, "in_use": use})
    else:
        talk.print(f"{name} {version['sha256']} is {'in use' if use else 'kept'}", soft_wrap=True)


@app.command("use", epilog=EXAMPLES)
def use(
    name: Name,
    sha256: Annotated[str, typer.Argument(help="Its digest; the first six digits or more, when they are enough.")],
    by: By = None,
    note: Note = "",
    as_json: JsonOption = False,
) -> None:
    """Let a version that is kept answer from now on. No request is dropped."""
    doors = Doors(settle().state_dir)
    _tell(_use(doors, name, _whole(doors, name, sha256), by, note), as_json)


@app.command("rollback", epilog=EXAMPLES)
def rollback(name: Name, by: By = None, note: Note = "", as_json: JsonOption = False) -> None:
    """Let the version that was used before the present one answer again."""
    doors = Doors(settle().state_dir)
    body = {"by": by or user_name(), "note": note}
    _tell(doors.change("POST", f"/models/{_quoted(name)}/rollback", body), as_json)


def _use(doors: Doors, name: str, sha256: str, by: str | None, note: str) -> Any:
    body = {"sha256": sha256, "by": by or user_name(), "note": note}
    return doors.change("PUT", f"/models/{_quoted(name)}/current", body)


def _tell(in_use: Any, as_json: bool) -> None:
    if as_json:
        write_json(in_use)
    else:
        talk.print(f"{in_use['name']} {in_use['sha256']} is in use", soft_wrap=True)


def _models(doors: Doors) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = doors.get("/models")["items"]
    return items


def _whole(doors: Doors, name: str, digits: str) -> str:
    """The digest that begins with these digits.

    Raises:
        UsageError: too few digits, or several versions begin so.
        NotFoundError: no such model or version.
    """
    if len(digits) < _MIN_DIGITS:
        raise UsageError(f"{digits!r} is too short", hint=f"give {_MIN_DIGITS} digits or more")
    if len(digits) == 64:
        return digits
    versions = [v["sha256"] for m in _models(doors) if m["name"] == name for v in m["versions"]]
    found: list[str] = [sha256 for sha256 in versions if sha256.startswith(digits)]
    if len(found) > 1:
        raise UsageError(f"{len(found)} versions of {name} begin with {digits}", hint="give more digits")
    if not found:
        raise NotFoundError(f"no version of {name} begins with {digits}", hint="`natwork models list` shows them")
    return found[0]


def _rows(model: dict[str, Any]) -> list[dict[str, Any]]:
    used = model["in_use"]
    rows = []
    for version in model["versions"]:
        answers = version["sha256"] == used["sha256"]
        saved_s = version["saved_s"]
        rows.append(
            {
                "model": model["name"],
                "sha256": version["sha256"][:16],
                "in_use": "yes" if answers else "",
                "size_bytes": version["size_bytes"],
                "saved": "with the package" if saved_s is None else _moment(saved_s),
                "chosen_by": used["by"] if answers else "",
                "note": used["note"] if answers else "",
            }
        )
    return rows


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _quoted(name: str) -> str:
    return quote(name, safe="")
