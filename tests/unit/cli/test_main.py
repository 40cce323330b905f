"""The command line's contract: exit codes, stdout for data, stderr for talk, help, and hostile surroundings."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from natwork_ray import __version__
from natwork_ray.cli import main, settings
from natwork_ray.errors import ConfigError, ExitCode, UsageError


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(commands(get_command(main.app)))
# Commands whose help promises an example.
WITH_EXAMPLE = [
    ("demo",),
    ("up",),
    ("approve",),
    ("audit", "verify"),
    ("train", "profiler"),
    ("reproduce", "table-2"),
]


def words(code: ExitCode) -> str:
    return {"USAGE": "usage", "PRECONDITION": "precondition missing", "VERIFICATION": "verification failed"}.get(
        code.name, code.name.lower().split("_")[0]
    )


def test_version_and_help(natwork: Any) -> None:
    assert natwork("--version").out.strip() == __version__
    for option in ("--help", "-h"):
        shown = natwork(option)
        assert shown.code == 0
        for name in {path[0] for path in COMMANDS}:
            assert f"  {name} " in shown.out
        for code in ExitCode:
            assert f"{code.value} {words(code)}" in " ".join(shown.out.split())


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(natwork: Any, path: tuple[str, ...]) -> None:
    shown = natwork(*path, "--help")
    assert shown.code == 0
    assert shown.err == ""
    assert "Usage: natwork" in shown.out
    if path in WITH_EXAMPLE:
        assert "Example" in shown.out
        assert "natwork " in shown.out.split("Example")[1]


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_option_and_argument_has_a_sentence(path: tuple[str, ...]) -> None:
    for parameter in COMMANDS[path].params:
        assert parameter.name == "help" or parameter.help, parameter.name


@pytest.mark.parametrize(
    "arguments",
    [
        ["frobnicate"],
        ["--nope"],
        ["decisions", "--nope"],
        ["decisions", "-o", "yaml"],
        ["decisions", "--status", "maybe"],
        ["audit"],
        ["audit", "list", "--limit", "0"],
        ["audit", "list", "--limit", "99999999999999999999999"],
        ["audit", "show"],
        ["audit", "show", "--", "-1"],
        ["audit", "show", "one"],
        ["mode", "panic"],
        ["up", "--hours", "nan"],
        ["up", "--hours", "inf"],
        ["up", "--hours", "1e300"],
        ["demo", "--minutes", "0"],
        ["demo", "--minutes", "nan"],
        ["demo", "--minutes", "1e300"],
        ["demo", "--seed", "-1"],
        ["demo", "--seed", "99999999999999999999"],
        ["demo", "--scenario", "moon-base"],
        ["demo", "--scenario", "[red]\x1b[31m"],
        ["demo", "--telemetry", "replay:"],
        ["demo", "--telemetry", "telepathy"],
        ["demo", "-o", "csv"],
        ["status", "--wait", "nan"],
        ["status", "--wait", "inf"],
        ["status", "--wait", "-1"],
        ["--set", "loop.step_s", "decisions"],
        ["--set", "=3", "decisions"],
        ["--set", "loop.step_s=nan", "decisions"],
        ["--set", "loop.step_s=ten", "decisions"],
        ["--set", "loop=3", "decisions"],
        ["--set", "http.port=65536", "decisions"],
        ["--set", "state_dir=~nobody-of-that-name/x", "decisions"],
        ["--config", "absent.toml", "decisions"],
        ["--config", ".", "decisions"],
    ],
    ids=" ".join,
)
def test_usage_errors_end_with_2_and_say_why(natwork: Any, arguments: list[str]) -> None:
    ended = natwork(*arguments)
    assert ended.code == ExitCode.USAGE
    assert ended.out == ""
    assert ended.err.strip()
    assert "\x1b" not in ended.err


def test_a_typo_gets_a_suggestion(natwork: Any) -> None:
    ended = natwork("--set", "loop.mod=act", "decisions")
    assert ended.code == ExitCode.USAGE
    assert "error: --set loop.mod: there is no configuration key 'loop.mod'" in ended.err
    assert "hint: did you mean 'loop.mode'?" in ended.err


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"loop = 3", b"[loop]\nstep_s = 'x'", b"a" * 100, b"\0" * 9])
def test_hostile_configuration_files(natwork: Any, content: bytes) -> None:
    Path("natwork.toml").write_bytes(content)
    ended = natwork("--config", "natwork.toml", "decisions")
    # An empty file is a configuration without settings; then it is the journal that is missing.
    assert ended.code == (ExitCode.PRECONDITION if content == b"" else ExitCode.USAGE)
    assert "error: " in ended.err
    assert "hint: " in ended.err


def test_a_huge_configuration_file_is_not_read(natwork: Any) -> None:
    with Path("huge.toml").open("wb") as file:
        file.truncate(2**40)
    ended = natwork("--config", "huge.toml", "decisions")
    assert ended.code == ExitCode.USAGE
    assert "larger than" in ended.err


def test_markup_and_control_characters_in_messages_are_text(natwork: Any) -> None:
    ended = natwork("--set", "[bold]x[/bold]\x1b[2J\u202e=1", "decisions")
    assert ended.code == ExitCode.USAGE
    assert "[bold]x[/bold]\\x1b[2J\\u202e" in ended.err
    assert "\x1b" not in ended.err


def test_errors_of_the_system_are_failures_in_its_own_words(
    natwork: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    ended = natwork("demo", "--out", tmp_path / "file")
    assert ended.code == ExitCode.FAILED
    assert "File exists" in ended.err
    assert "hint: " in ended.err


def test_an_interrupt_ends_as_in_a_shell(natwork: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(settings, "load_config", interrupted)
    assert natwork("decisions").code == 130


def test_an_unforeseen_error_is_not_swallowed(natwork: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(settings, "load_config", bug)
    with pytest.raises(ZeroDivisionError):
        natwork("decisions")


@pytest.mark.parametrize("arguments", [("decisions", "-o", "csv"), ("decisions", "--json")])
def test_a_reader_that_goes_away_is_no_crash(small_run: Any, arguments: tuple[str, ...]) -> None:
    """A real process, because what Python does at exit is part of it."""
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.run(
        [sys.executable, "-m", "natwork_ray.cli.main", "--set", f"state_dir={small_run.state_dir}", *arguments],
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
        timeout=60,
    )
    os.close(writing)
    assert process.returncode == ExitCode.FAILED
    assert process.stderr == b""


def test_settings_become_whole_paths(natwork: Any, tmp_path: Path) -> None:
    settings.remember(None, ["model=m.safetensors", "data_dir=~/data", "replay.folder=rec", "state_dir=~/s"])
    config = settings.settle(loop__mode="act", emulation__seed=None)
    here, home = Path.cwd(), tmp_path / "home"
    assert (config.model, config.data_dir) == (here / "m.safetensors", home / "data")
    assert (config.replay.folder, config.state_dir) == (here / "rec", home / "s")
    assert (config.loop.mode, config.emulation.seed) == ("act", 7)
    with pytest.raises(ConfigError, match="nobody-of-that-name"):
        settings.whole(Path("~nobody-of-that-name/x"))
    with pytest.raises(UsageError, match="no value"):
        settings.remember(None, ["loop.mode"])


def test_a_default_of_a_command_yields_to_file_environment_and_flags(
    natwork: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings.remember(None, [])
    assert not settings.named("loop.mode")
    settings.remember(None, ["loop.mode=approve"])
    assert settings.named("loop.mode")
    assert not settings.named("loop.step_s")
    (tmp_path / "natwork.toml").write_text("backend = 'emulated'\n[http]\nport = 9000\n")
    settings.remember(tmp_path / "natwork.toml", [])
    assert settings.named("http.port")
    assert settings.named("backend")
    monkeypatch.setenv("NATWORK_SLA__WINDOW_S", "604800")
    assert settings.named("sla.window_s")
