"""What was carried out under which key, kept where it was done: in an annotation of the Deployment.

So it survives us, needs no store and no further right, and goes when the workload goes. Bounded: the newest
`MAX_DELIVERIES` per workload; whoever repeats an older key has waited longer than any courier does.
"""

from __future__ import annotations

import hashlib
import json

from natwork_ray.adapters.kubernetes_objects import MANAGER, Json
from natwork_ray.domain.actions import ActionOutcome, Instruction
from natwork_ray.domain.values import decode, encode, value
from natwork_ray.errors import ConflictError, InputError

DONE = f"{MANAGER}/done"  # JSON list of `Delivery`, newest last
MAX_DELIVERIES = 16


@value
class Delivery:
    """An instruction that was carried out: its digest (SHA-256, 32 digits), and what came of it."""

    digest: str
    outcome: ActionOutcome


def known_outcome(deployment: Json, instruction: Instruction) -> ActionOutcome | None:
    """The outcome of an earlier delivery of the key.

    Raises:
        ConflictError: the key was used for another instruction.
        InputError: somebody else wrote into the annotation.
    """
    for told in deliveries(deployment):
        if told.outcome.key == instruction.key:
            if told.digest != _digest(instruction):
                raise ConflictError(
                    f"key {instruction.key} was used for another instruction", hint="a new instruction needs a new key"
                )
            return told.outcome
    return None


def with_delivery(deployment: Json, instruction: Instruction, outcome: ActionOutcome) -> str:
    """The annotation with one delivery more."""
    told = [*deliveries(deployment), Delivery(digest=_digest(instruction), outcome=outcome)]
    return json.dumps([json.loads(encode(delivery)) for delivery in told[-MAX_DELIVERIES:]], separators=(",", ":"))


def deliveries(deployment: Json) -> tuple[Delivery, ...]:
    """All that the annotation tells, oldest first."""
    text = (deployment["metadata"].get("annotations") or {}).get(DONE, "[]")
    try:
        return tuple(decode(Delivery, json.dumps(item)) for item in json.loads(text))
    except (ValueError, TypeError, InputError) as error:
        raise InputError(
            f"the annotation {DONE} of {deployment['metadata']['name']} is broken: {error}", hint="remove it"
        ) from error


def _digest(instruction: Instruction) -> str:
    return hashlib.sha256(encode(instruction)).hexdigest()[:32]
