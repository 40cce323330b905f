"""HAProxy is started on loopback, with files of this cluster alone; without one nothing is set."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from agents import haproxy

CONFIG = """\
global
    stats socket /tmp/x.sock mode 666
frontend prometheus
    bind :9101
    mode http
frontend http_frontend
    bind 127.0.0.1:8000
listen stats
  bind *:8404
  stats enable
"""


def test_serve_is_told_to_use_it_and_not_to_open_grpc() -> None:
    if haproxy.binary() is None:
        pytest.skip("no HAProxy on this machine")
    settings = haproxy.environment()
    assert settings["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert settings["RAY_SERVE_USE_GRPC_BY_DEFAULT"] == "0"


def test_without_one_serve_keeps_its_own_proxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(haproxy, "binary", lambda: None)
    assert haproxy.environment() == {}
    assert haproxy.head_environment(tmp_path, (1, 2)) == {}
    assert list(tmp_path.iterdir()) == []


def test_files_lie_in_the_folder_of_the_cluster_and_are_its_owners(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(haproxy, "binary", lambda: "/usr/sbin/haproxy")
    settings = haproxy.head_environment(tmp_path, (1001, 1002))
    paths = [Path(text) for text in settings.values() if text.startswith("/")]
    assert len(paths) == 6
    assert all(path.is_relative_to(tmp_path / haproxy.FOLDER) for path in paths)
    assert stat.S_IMODE((tmp_path / haproxy.FOLDER).stat().st_mode) == 0o700
    assert (settings["RAY_SERVE_HAPROXY_METRICS_PORT"], settings["RAY_SERVE_HAPROXY_STATS_PORT"]) == ("1001", "1002")


def test_what_would_listen_everywhere_listens_on_loopback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # In place of HAProxy: something that shows its configuration and what else it was given.
    show = tmp_path / "show"
    show.write_text(f"#!{sys.executable}\nimport sys\nprint(open(sys.argv[3]).read(), sys.argv[4:])\n")
    show.chmod(0o700)
    monkeypatch.setattr(haproxy, "binary", lambda: str(show))
    settings = haproxy.head_environment(tmp_path, (1, 2))
    config = tmp_path / "haproxy.cfg"
    config.write_text(CONFIG)
    command = [settings["RAY_SERVE_HAPROXY_BINARY_PATH"], "-db", "-f", str(config), "-sf", "17"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    assert [line.split()[1] for line in shown.splitlines() if line.split()[:1] == ["bind"]] == [
        "127.0.0.1:9101",
        "127.0.0.1:8000",
        "127.0.0.1:8404",
    ]
    assert "stats socket /tmp/x.sock mode 666" in shown
    assert "['-sf', '17']" in shown
