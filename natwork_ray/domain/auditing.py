"""What is put into the audit log."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from natwork_ray.domain.values import value


class AuditKind(StrEnum):
    """What an entry records (D3.3 section 3.2: every verification and enforcement, before and after)."""

    RUN = "run"
    VERDICT = "verdict"
    DECISION = "decision"
    INSTRUCTION = "instruction"
    OUTCOME = "outcome"
    APPROVAL = "approval"
    MODE = "mode"
    MODEL = "model"
    PROFILE = "profile"
    QUOTA = "quota"


@value
class AuditRecord:
    """The content of an entry before the log gives it a number and a place in the chain.

    `at_s` is on the backend's clock; `subject` names the container, decision or instruction; `body` is JSON.
    """

    at_s: float
    kind: AuditKind
    subject: str
    body: dict[str, Any]
