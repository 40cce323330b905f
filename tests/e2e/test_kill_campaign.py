"""What must survive fifty kills: everything."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.mark.slow
def test_fifty_kills_change_nothing(shell: Any) -> None:
    result = shell.json("bench", "chaos", "--kills", "50", "--seed", "8", "--json", timeout_s=480)
    assert result["passed"]
    assert sum(result["by_victim"].values()) == 50
    assert set(result["by_victim"]) == {"anomaly", "control", "limi"}
    assert result["kills_in_flight"] >= 10
    assert result["instructions"]["issued"] >= 10
    assert result["instructions"]["done_twice"] == 0
    assert result["events"]["lost"] == result["events"]["doubled"] == 0
    assert result["events"]["committed"] == result["events"]["expected"]
    assert result["containers_lost"] == 0
    assert result["equal_to_undisturbed"]
    assert result["recovery_s"]["max"] <= 30
