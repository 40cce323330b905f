"""File, then environment, then flags; what is unknown or out of range fails and names its source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from natwork_ray.config import Config, known_keys, load_config
from natwork_ray.domain.decisions import Mode
from natwork_ray.errors import ConfigError


@pytest.fixture
def toml(tmp_path: Path) -> Any:
    def write(text: str | bytes) -> Path:
        path = tmp_path / "natwork.toml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def test_defaults_are_loopback_and_observe() -> None:
    config = load_config(environ={})
    assert config == Config()
    assert (config.loop.mode, config.http.host) == (Mode.OBSERVE, "127.0.0.1")
    with pytest.raises(ValidationError):
        config.loop.step_s = 1.0


def test_later_sources_win(toml: Any) -> None:
    path = toml("[loop]\nstep_s = 1\nwindow = 20\nmode = 'act'\n[http]\nport = 1\n")
    environ = {"NATWORK_LOOP__STEP_S": "2", "NATWORK_LOOP__WINDOW": "30", "PATH": "/bin", "NATWORK_DATA_DIR": "sets"}
    config = load_config(file=path, environ=environ, flags={"loop.step_s": "3", "loop.mode": None})
    assert (config.loop.step_s, config.loop.window, config.loop.mode, config.http.port) == (3.0, 30, Mode.ACT, 1)
    assert config.data_dir == Path("sets")


def test_the_variable_names_the_file_and_the_argument_wins(toml: Any, tmp_path: Path) -> None:
    path = toml("backend = 'replay'\n")
    assert load_config(environ={"NATWORK_CONFIG": str(path)}).backend == "replay"
    other = tmp_path / "other.toml"
    other.write_text("backend = 'emulated'\n")
    assert load_config(file=other, environ={"NATWORK_CONFIG": str(path)}).backend == "emulated"
    assert load_config(environ={"NATWORK_CONFIG": ""}) == Config()


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATWORK_HTTP__PORT", "4711")
    monkeypatch.delenv("NATWORK_CONFIG", raising=False)
    assert load_config().http.port == 4711


def test_unknown_keys_fail_in_every_source_with_the_nearest_one(toml: Any) -> None:
    path = toml("[loop]\nstep = 1\n")
    with pytest.raises(ConfigError, match=r"'loop\.step'") as caught:
        load_config(file=path, environ={})
    assert str(path) in caught.value.what
    assert "loop.step_s" in caught.value.hint
    with pytest.raises(ConfigError, match="NATWORK_ALARM__COOLDOWN") as caught:
        load_config(environ={"NATWORK_ALARM__COOLDOWN": "1"})
    assert "alarm.cooldown_s" in caught.value.hint
    with pytest.raises(ConfigError, match=r"--set http\.prot") as caught:
        load_config(environ={}, flags={"http.prot": 1})
    assert "http.port" in caught.value.hint
    with pytest.raises(ConfigError) as caught:
        load_config(environ={}, flags={"zzzzzz": 1})
    assert "docs/configuration.md" in caught.value.hint


@pytest.mark.parametrize("name", ["NATWORK_LOOP_STEP_S", "NATWORK_HOME", "NATWORK_", "NATWORK_LOOP", "NATWORK_LOOP__"])
def test_variables_with_the_prefix_that_are_no_keys_fail(name: str) -> None:
    for text in ("1", ""):
        with pytest.raises(ConfigError, match=name):
            load_config(environ={name: text})


def test_the_token_is_no_key_and_nothing_of_it_is_shown() -> None:
    assert load_config(environ={"NATWORK_API_TOKEN": "s3cret"}) == Config()


def test_an_empty_variable_is_not_set() -> None:
    assert load_config(environ={"NATWORK_DATA_DIR": "", "NATWORK_LOOP__STEP_S": ""}) == Config()


@pytest.mark.parametrize(
    "text",
    [
        "loop = 3",
        "loop = [1]",
        "[nosuch]",
        "[loop.inner]",
        "nosuch = {}",
        "[[loop]]\nstep_s = 1",
        "[loop.step_s]\nx = 1",
    ],
)
def test_sections_are_sections(toml: Any, text: str) -> None:
    with pytest.raises(ConfigError):
        load_config(file=toml(text), environ={})


def test_an_empty_section_is_fine(toml: Any) -> None:
    assert load_config(file=toml("[loop]\n"), environ={}) == Config()


@pytest.mark.parametrize("text", ["loop = {", "a = 1\na = 2", b"\xff\xfe"])
def test_files_that_are_no_toml(toml: Any, text: str | bytes) -> None:
    with pytest.raises(ConfigError, match="cannot read configuration file"):
        load_config(file=toml(text), environ={})


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(ConfigError, match="cannot read"):
            load_config(environ={"NATWORK_CONFIG": str(path)})


@pytest.mark.parametrize(
    ("key", "item"),
    [
        ("loop.step_s", "0"),
        ("loop.step_s", "nan"),
        ("loop.step_s", "inf"),
        ("loop.step_s", True),
        ("loop.window", 3),
        ("loop.window", 4.5),
        ("loop.mode", "ACT NOW"),
        ("alarm.fast_score", 1.01),
        ("sla.availability", 1),
        ("sla.availability", 0),
        ("http.port", 65536),
        ("http.port", "80; rm"),
        ("emulation.seed", -1),
        ("emulation.seed", 2**32),
        ("backend", "real"),
        ("state_dir", [1]),
    ],
)
def test_ranges(key: str, item: Any) -> None:
    with pytest.raises(ConfigError, match=f"--set {key}: {key} = "):
        load_config(environ={}, flags={key: item})


def test_a_value_out_of_range_names_the_source_that_won(toml: Any) -> None:
    path = toml("[loop]\nstep_s = -1\n")
    with pytest.raises(ConfigError, match=r"natwork\.toml: loop\.step_s = -1"):
        load_config(file=path, environ={})
    with pytest.raises(ConfigError, match=r"^NATWORK_LOOP__STEP_S: "):
        load_config(file=path, environ={"NATWORK_LOOP__STEP_S": "-2"})
    assert load_config(file=path, environ={"NATWORK_LOOP__STEP_S": "2"}).loop.step_s == 2.0


def test_a_vote_that_can_never_be_reached() -> None:
    with pytest.raises(ConfigError, match=r"--set alarm\.votes_needed: alarm = .*can never be reached"):
        load_config(environ={}, flags={"alarm.votes_needed": 4})
    assert load_config(environ={}, flags={"alarm.votes_needed": 4, "alarm.votes_of": 4}).alarm.votes_of == 4


def test_every_key_has_a_sentence_and_can_be_set_to_its_default() -> None:
    keys = known_keys()
    assert {"backend", "loop.step_s", "sla.availability"} <= keys.keys()
    for key, item in keys.items():
        assert item.description, key
        assert item.description.endswith("."), key
        assert load_config(environ={}, flags={key: item.default}) == Config()
