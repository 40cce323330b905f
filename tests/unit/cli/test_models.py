"""`natwork models` through the doors of a stand-in gateway."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from natwork_ray.errors import ExitCode

FIRST, SECOND, THIRD = "aa" * 32, "aabbcc" + "d" * 58, "bb" * 32
IN_USE = {"name": "profiler", "sha256": FIRST, "at_s": 5.0, "by": "ada", "note": "better", "previous": SECOND}


def version(sha256: str, saved_s: float | None = 1.7e9) -> dict[str, Any]:
    return {"name": "profiler", "sha256": sha256, "size_bytes": 1234, "saved_s": saved_s, "packaged": saved_s is None}


MODELS = {
    "items": [
        {"name": "profiler", "in_use": IN_USE, "versions": [version(FIRST), version(SECOND), version(THIRD, None)]},
        {"name": "forecaster", "in_use": {**IN_USE, "name": "forecaster"}, "versions": [version("ee" * 32)]},
    ]
}


@pytest.fixture
def models(natwork: Any, gateway: Any) -> Any:
    gateway.answers_at("GET", "/api/v1/models", 200, MODELS)
    return lambda *words: natwork("--set", f"state_dir={gateway.state_dir}", "models", *words)


def test_versions_are_listed_with_the_one_in_use(models: Any) -> None:
    ended = models("list", "--json")
    assert (ended.code, ended.err, json.loads(ended.out)) == (0, "", {"models": MODELS["items"]})
    lines = models("list", "-o", "csv").out.splitlines()
    assert lines[0] == "model,sha256,in_use,size_bytes,saved,chosen_by,note"
    assert len(lines) == 5
    assert lines[1].startswith(f"profiler,{FIRST[:16]},yes,1234,20")
    assert lines[1].endswith(",ada,better")
    assert lines[3] == f"profiler,{THIRD[:16]},,1234,with the package,,"


def test_a_file_is_published(models: Any, gateway: Any, tmp_path: Path) -> None:
    file = tmp_path / "new.safetensors"
    file.write_bytes(b"\x00model")
    gateway.answers(201, version(SECOND))
    ended = models("publish", "profiler", str(file))
    assert (ended.code, ended.out) == (0, "")
    assert "is kept" in ended.err
    (asked,) = gateway.asked
    assert (asked.method, asked.path, asked.body) == ("POST", "/api/v1/models/profiler/versions", b"\x00model")
    assert asked.authorization == "Bearer s3cret"


def test_published_and_used_at_once(models: Any, gateway: Any, tmp_path: Path) -> None:
    file = tmp_path / "new.safetensors"
    file.write_bytes(b"model")
    gateway.answers(201, version(SECOND))
    ended = models("publish", "profiler", str(file), "--use", "--by", "Ada", "--note", "n", "--json")
    assert json.loads(ended.out) == {**version(SECOND), "in_use": True}
    assert gateway.asked[1].body == {"sha256": SECOND, "by": "Ada", "note": "n"}
    assert (gateway.asked[1].method, gateway.asked[1].path) == ("PUT", "/api/v1/models/profiler/current")


def test_the_first_digits_are_enough(models: Any, gateway: Any) -> None:
    gateway.answers(200, {**IN_USE, "sha256": SECOND})
    ended = models("use", "profiler", "aabbcc", "--by", "Ada")
    assert ended.code == 0
    assert f"profiler {SECOND} is in use" in ended.err
    assert gateway.asked[-1].body == {"sha256": SECOND, "by": "Ada", "note": ""}


def test_a_whole_digest_needs_no_look(models: Any, gateway: Any) -> None:
    gateway.answers(200, IN_USE)
    ended = models("use", "profiler", FIRST, "--by", "Ada", "--json")
    assert json.loads(ended.out) == IN_USE
    assert [a.method for a in gateway.asked] == ["PUT"]


@pytest.mark.parametrize(
    ("digits", "code", "words"),
    [
        ("aab", ExitCode.USAGE, "too short"),
        ("aaaaaa", None, ""),
        ("eeeeee", ExitCode.FAILED, "no version"),  # the forecaster's, not the profiler's
        ("cccccc", ExitCode.FAILED, "no version"),
    ],
)
def test_digits_that_name_no_one_version(
    models: Any, gateway: Any, digits: str, code: ExitCode | None, words: str
) -> None:
    gateway.answers(200, IN_USE)
    ended = models("use", "profiler", digits, "--by", "Ada")
    if code is None:
        assert ended.code == 0
        return
    assert ended.code == code
    assert words in ended.err
    assert "PUT" not in [a.method for a in gateway.asked]


def test_digits_that_name_several_versions(models: Any, gateway: Any) -> None:
    twins = {**MODELS["items"][0], "versions": [version("aabbcc" + "1" * 58), version("aabbcc" + "2" * 58)]}
    gateway.answers_at("GET", "/api/v1/models", 200, {"items": [twins]})
    ended = models("use", "profiler", "aabbcc")
    assert ended.code == ExitCode.USAGE
    assert "2 versions" in ended.err


def test_rollback(models: Any, gateway: Any) -> None:
    gateway.answers(200, {**IN_USE, "sha256": SECOND})
    ended = models("rollback", "profiler", "--by", "Ada", "--note", "worse")
    assert ended.code == 0
    assert f"{SECOND} is in use" in ended.err
    (asked,) = gateway.asked
    assert (asked.method, asked.path) == ("POST", "/api/v1/models/profiler/rollback")
    assert asked.body == {"by": "Ada", "note": "worse"}


def test_what_does_not_load_is_told(models: Any, gateway: Any, tmp_path: Path) -> None:
    file = tmp_path / "bad"
    file.write_bytes(b"no model")
    problem = {"type": "urn:natwork:problem:input", "detail": "not a safetensors model", "hint": "train it anew"}
    gateway.answers(422, problem)
    ended = models("publish", "profiler", str(file))
    assert ended.code == ExitCode.USAGE
    assert "not a safetensors model" in ended.err
    assert "train it anew" in ended.err


def test_no_file_and_too_large_a_file(
    models: Any, gateway: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from natwork_ray.cli import models as command

    assert models("publish", "profiler", str(tmp_path / "absent")).code == ExitCode.PRECONDITION
    monkeypatch.setattr(command, "_MAX_BYTES", 3)
    (tmp_path / "large").write_bytes(b"four")
    ended = models("publish", "profiler", str(tmp_path / "large"))
    assert ended.code != 0
    assert "larger than 3 bytes" in ended.err
    assert gateway.asked == []
