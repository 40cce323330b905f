from __future__ import annotations

from pathlib import Path

import pytest

from natwork_ray.errors import PreconditionError
from serve_apps.security import TOKEN_FILE, host_name, read_token


def test_the_environment_outranks_the_file(tmp_path: Path) -> None:
    file = tmp_path / TOKEN_FILE
    file.write_text("from-the-file-itself\n", encoding="ascii")
    file.chmod(0o600)
    assert read_token(tmp_path, {"NATWORK_API_TOKEN": "from-the-environment"}) == "from-the-environment"
    assert read_token(tmp_path, {"NATWORK_API_TOKEN": ""}) == "from-the-file-itself"
    assert read_token(tmp_path, {}) == "from-the-file-itself"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o622])
def test_a_token_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    file = tmp_path / TOKEN_FILE
    file.write_text("known-to-everybody", encoding="ascii")
    file.chmod(mode)
    with pytest.raises(PreconditionError, match="others may read") as caught:
        read_token(tmp_path, {})
    assert "known-to-everybody" not in str(caught.value)
    assert "chmod 600" in caught.value.hint


def test_without_a_token_it_says_where_one_belongs(tmp_path: Path) -> None:
    with pytest.raises(PreconditionError, match="cannot read the API token"):
        read_token(tmp_path, {})
    (tmp_path / TOKEN_FILE).write_bytes(b"\xff\xfe")
    with pytest.raises(PreconditionError, match="cannot read the API token"):
        read_token(tmp_path, {})


@pytest.mark.parametrize(
    ("header", "name"),
    [("LocalHost:80", "localhost"), ("[::1]:80", "[::1]"), ("[::1]x", "[::1]"), ("a:b:c", "a"), ("", "")],
)
def test_host_names(header: str, name: str) -> None:
    assert host_name(header) == name
