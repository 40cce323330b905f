"""Prometheus' own tool accepts the alert rules, and they fire when they should."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RULES = ROOT / "natwork_ray" / "dashboards" / "natwork-rules.yml"
CASES = ROOT / "tests" / "vectors" / "natwork-rules-test.yml"


@pytest.fixture(scope="module")
def promtool() -> str:
    path = shutil.which("promtool")
    if path is None:
        pytest.skip("promtool is not installed (Debian: apt install prometheus)")
    return path


def test_the_rules_are_sound(promtool: str) -> None:
    done = subprocess.run([promtool, "check", "rules", str(RULES)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_alerts_fire_when_they_should(promtool: str, tmp_path: Path) -> None:
    cases = tmp_path / "cases.yml"
    cases.write_text(CASES.read_text(encoding="utf-8").replace("- RULES", f"- {RULES}"), encoding="utf-8")
    done = subprocess.run([promtool, "test", "rules", str(cases)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_case_that_is_wrong_fails(promtool: str, tmp_path: Path) -> None:
    cases = tmp_path / "cases.yml"
    text = CASES.read_text(encoding="utf-8").replace("- RULES", f"- {RULES}")
    cases.write_text(text.replace("kind: high_cpu", "kind: high_memory"), encoding="utf-8")
    done = subprocess.run([promtool, "test", "rules", str(cases)], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
