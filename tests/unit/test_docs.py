"""docs/cli.md describes every command, option and exit code; links between documents lead somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from natwork_ray.cli.main import app
from natwork_ray.errors import ExitCode

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def _commands(group: Any, path: str = "natwork") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


ROOT_COMMAND = get_command(app)
COMMANDS = dict(_commands(ROOT_COMMAND))


@pytest.fixture(scope="module")
def page() -> str:
    return (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")


def _section(page: str, title: str) -> str:
    parts = page.split(f"\n## {title}\n")
    assert len(parts) == 2, f"docs/cli.md needs one section {title!r}"
    return parts[1].split("\n## ")[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_described_with_every_option(page: str, name: str) -> None:
    section = _section(page, f"`{name}`")
    for parameter in COMMANDS[name].params:
        if parameter.param_type_name == "argument":
            assert parameter.name.upper() in section, parameter.name
        else:
            for option in (*parameter.opts, *parameter.secondary_opts):
                assert option in ("--help", "-h") or f"`{option}`" in section, option


def test_no_option_is_described_that_does_not_exist(page: str) -> None:
    for name, command in COMMANDS.items():
        real = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
        described = re.findall(r"`(--?[a-z][a-z-]*)`", _section(page, f"`{name}`"))
        assert set(described) <= real, name


def test_no_command_is_described_that_does_not_exist(page: str) -> None:
    assert set(re.findall(r"^## `(.+)`$", page, re.MULTILINE)) == set(COMMANDS)


def test_options_of_every_command_are_described(page: str) -> None:
    introduction = page.split("\n## ")[0]
    for parameter in ROOT_COMMAND.params:
        for option in parameter.opts:
            assert f"`{option}`" in introduction, option


def test_the_table_of_exit_codes_is_complete(page: str) -> None:
    rows = re.findall(r"^\| (\d+) \| ([a-z ]+) \|", _section(page, "Exit codes"), re.MULTILINE)
    assert rows == [(str(code.value), code.name.lower().replace("_", " ")) for code in ExitCode]


@pytest.mark.parametrize("source", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(source: Path) -> None:
    for target in _LINK.findall(source.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://", "mailto:", "#")):
            assert (source.parent / target.split("#")[0]).exists(), target


@pytest.mark.parametrize("source", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_the_documents_exist(source: Path) -> None:
    """`natwork ...` at the start of a line of code or in backticks names a command, with options that it has."""
    text = source.read_text(encoding="utf-8")
    lines = re.findall(r"^ {4}(?:\.venv/bin/)?natwork (.*)$", text, re.MULTILINE) + re.findall(
        r"`natwork ([^`]*)`", text
    )
    for line in lines:
        for part in re.split(r"; | \| ", line.split(" #")[0].replace("natwork ", "")):
            _check(part.split())


def _check(words: list[str]) -> None:
    while words and words[0] in ("--set", "--config"):
        words = words[2:]
    group: Any = ROOT_COMMAND
    while words and hasattr(group, "commands") and words[0] in group.commands:
        group, words = group.commands[words[0]], words[1:]
    if hasattr(group, "commands"):
        assert group is not ROOT_COMMAND or not words or words[0] in _NO_COMMAND or words[0][0] in "-[.", words
        return
    real = {o for p in group.params for o in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}
    for word in words:
        if re.fullmatch(r"--[a-z-]+", word):
            assert word in real, word


# The program's name in running text, and words after a pipe.
_NO_COMMAND = frozenset({"COMMAND", "jq"})
