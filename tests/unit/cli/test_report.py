"""The report: complete, closed to the network, safe against hostile names, the same for the same record."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import sys
from collections.abc import Callable
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from natwork_ray.cli import report
from natwork_ray.cli.report import render_report, run_data, write_report
from natwork_ray.cli.report_sections import Timeline, clock
from natwork_ray.domain.decisions import Decision
from natwork_ray.domain.runs import RunRecord
from natwork_ray.domain.values import Backend
from natwork_ray.errors import PreconditionError, StoreError

MakeRecord = Callable[..., RunRecord]
HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)">&amp;\u2028<!--'


class Page(HTMLParser):
    """Elements and scripts of a page, parsed as a browser would split them."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.words: list[str] = []
        self._script: tuple[dict[str, str | None], list[str]] | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self._script = (dict(attrs), [])

    def handle_endtag(self, tag: str) -> None:
        if tag == "script" and self._script is not None:
            self.scripts.append((self._script[0], "".join(self._script[1])))
            self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is not None:
            self._script[1].append(data)
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def data(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads(next(body for attrs, body in self.scripts if attrs.get("id") == "run"))
        return loaded


@pytest.fixture(scope="module")
def record(make_record: MakeRecord) -> RunRecord:
    return make_record()


@pytest.fixture(scope="module")
def page(record: RunRecord) -> Page:
    return Page(render_report(record))


def test_headline_names_backend_seed_scenario_and_figures(page: Page) -> None:
    for words in (
        "emulated",
        "smart-city",
        "5 of 6",
        "0.67 /h",
        "4 of 5",
        "4.02 s",
        "6,480 windows",
        "verified",
        "user-db, 0.26 % of 1296 s",
    ):
        assert words in page.text, words
    assert "5f" * 32 in page.text


@pytest.mark.parametrize("backend", list(Backend))
def test_every_backend_is_labelled(make_record: MakeRecord, backend: Backend) -> None:
    page = Page(render_report(dataclasses.replace(make_record(samples=20), backend=backend)))
    assert ("span", {"class": f"badge {backend}"}) in page.elements


def test_every_decision_is_shown_with_reason_and_alternatives(page: Page, record: RunRecord) -> None:
    ids = {attrs.get("id") for tag, attrs in page.elements if tag == "details"}
    assert ids == {d.id for d in record.decisions}
    for decision in record.decisions:
        assert decision.reason in page.text
        for alternative in decision.rejected:
            assert alternative.reason in page.text
    assert "the target node refused: no memory left" in page.text


def test_data_hold_every_curve_and_gap(page: Page, record: RunRecord) -> None:
    values = page.data["values"]
    assert (len(values), len(values[0]), len(values[0][0])) == (12, 12, 540)
    assert values[0][0][35] is None
    expected = np.moveaxis(record.telemetry.values, 2, 1)[1]
    np.testing.assert_allclose(np.array(values[1]), expected, rtol=1e-3)
    assert page.data["step"] == pytest.approx(record.telemetry.step_s)
    assert page.data["first"] == pytest.approx(
        record.ended_s - 539 * record.telemetry.step_s - record.started_s, abs=1e-2
    )


def test_nothing_is_fetched(record: RunRecord, page: Page) -> None:
    for tag, attrs in page.elements:
        assert not {"src", "srcset", "action", "background", "data"} & set(attrs), (tag, attrs)
        assert tag not in {"link", "iframe", "object", "embed", "base", "img"}
        assert (attrs.get("href") or "#").startswith("#")
    assert "@import" not in render_report(record).split("</style>")[0]
    assert "url(" not in render_report(record).split("</style>")[0]


def test_policy_allows_exactly_the_two_scripts(page: Page) -> None:
    (policy,) = [attrs["content"] for _, attrs in page.elements if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy
    assert "http" not in policy
    assert "unsafe-eval" not in policy
    run_by_browser = [body for attrs, body in page.scripts if attrs.get("type") != "application/json"]
    digests = [base64.b64encode(sha256(body.encode()).digest()).decode() for body in run_by_browser]
    assert re.findall(r"sha256-([^']+)'", policy) == digests
    assert len(digests) == 2


def test_hostile_names_stay_text(make_record: MakeRecord) -> None:
    names = (
        HOSTILE,
        "a",
        "b",
        "{{PLOTLY}}",
        '"><svg onload=alert(3)>',
        "ü'",
        "g",
        "h",
        HOSTILE + "2",
        "j",
        "k",
        "l",
    )
    record = make_record(names=names, samples=30)
    spoilt = tuple(_spoil(d) for d in record.decisions)
    record = dataclasses.replace(record, scenario=HOSTILE, decisions=spoilt, detector=HOSTILE, audit_root=HOSTILE)
    page = Page(render_report(record))
    assert len(page.scripts) == 3
    assert not [tag for tag, _ in page.elements if tag in {"img", "svg"}]
    assert not [attrs for _, attrs in page.elements if any(name.startswith("on") for name in attrs)]
    assert page.data["containers"] == list(names)
    assert "alert(1)" in page.text
    data = next(body for attrs, body in page.scripts if attrs.get("id") == "run")
    assert not set("<>&\u2028") & set(data)


def _spoil(decision: Decision) -> Decision:
    return dataclasses.replace(decision, reason=HOSTILE, id=decision.id + HOSTILE)


def test_equal_records_give_equal_bytes(make_record: MakeRecord, tmp_path: Path) -> None:
    write_report(make_record(3), tmp_path / "a" / "r.html")
    write_report(make_record(3), tmp_path / "b" / "r.html")
    first = (tmp_path / "a" / "r.html").read_bytes()
    assert first == (tmp_path / "b" / "r.html").read_bytes()
    write_report(make_record(4), tmp_path / "b" / "r.html")
    assert first != (tmp_path / "b" / "r.html").read_bytes()


def test_size_is_bounded(make_record: MakeRecord) -> None:
    assert len(render_report(make_record(samples=900)).encode()) < 7_000_000


def test_long_runs_keep_their_extremes(make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "MAX_VALUES", 12 * 12 * 200)
    record = make_record(samples=5000)
    values = record.telemetry.values.copy()
    values[2, 1234, 4], values[2, 4321, 4], values[3, :500, 4] = 7.5, -7.5, np.nan
    record = dataclasses.replace(record, telemetry=dataclasses.replace(record.telemetry, values=values))
    data = json.loads(report._json_in_html(run_data(record, Timeline.of(record))))
    curve = data["values"][2][4]
    assert data["thinned"]
    assert len(curve) <= 202
    assert max(curve) == 7.5
    assert min(curve) == -7.5
    assert data["values"][3][4][0] is None
    at = data["first"] + curve.index(7.5) * data["step"]
    true_at = record.ended_s - record.started_s - (4999 - 1234) * record.telemetry.step_s
    assert abs(at - true_at) <= 2 * data["step"]


def test_many_containers_keep_those_with_a_story(make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "MAX_VALUES", report.MIN_POINTS * 12 * 7)
    record = make_record()
    data = json.loads(report._json_in_html(run_data(record, Timeline.of(record))))
    assert {d.container for d in record.decisions} <= set(data["containers"])
    assert data["leftOut"] == 5
    assert "camera-gateway" in data["containers"]  # flagged, though nothing was decided


def test_an_empty_run_says_so(make_record: MakeRecord) -> None:
    record = dataclasses.replace(
        make_record(samples=20),
        truth=(),
        verdicts=(),
        decisions=(),
        outcomes=(),
        quota=(),
        node_usage=(),
        audit_verified=False,
        audit_root="",
        audit_entries=0,
    )
    page = Page(render_report(record))
    for words in ("No decision was taken", "No container was moved", "No quota was kept", "did not verify"):
        assert words in page.text


def test_an_outcome_without_its_decision_is_still_told(make_record: MakeRecord) -> None:
    record = dataclasses.replace(make_record(samples=20), decisions=())
    assert {a.container for a in Timeline.of(record).actions} == {"?"}
    assert "4 of 5" in Page(render_report(record)).text


def test_unwritable_place_is_named(make_record: MakeRecord, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write the report"):
        write_report(make_record(samples=20), tmp_path / "file" / "r.html")


def test_missing_plotly_names_the_extra(make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(PreconditionError, match=r"natwork-ray\[plots\]"):
        render_report(make_record(samples=20))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00:00"), (-0.2, "0:00:00"), (59.6, "0:01:00"), (-61, "-0:01:01"), (90000, "25:00:00")],
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
