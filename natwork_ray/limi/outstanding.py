"""The steps that a migration has asked for and that are not over yet: their numbers, attempts and back-offs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from natwork_ray.limi import retries
from natwork_ray.limi.plan import Task
from natwork_ray.limi.steps import Step, Verb, Wait

NUMBERS_PER_LIFE = 100_000  # of a coordinator: more steps than one ever asks for


@dataclass
class Asked:
    """A step that was handed out, that is held, or that waits for its back-off."""

    step: Step
    task: Task
    waiting: bool
    began_s: float | None = None  # first handing out
    held_since_s: float | None = None
    lost_since_s: float | None = None  # first loss


class Outstanding:
    """Numbers steps from 1 and keeps those that are neither done nor given up."""

    def __init__(self) -> None:
        self._asked: dict[int, Asked] = {}
        self._number = 0
        self.begun: set[Verb] = set()  # handed out at least once, over or not

    def __bool__(self) -> bool:
        return bool(self._asked)

    def all(self) -> tuple[Asked, ...]:
        """In the order in which they were asked for."""
        return tuple(self._asked.values())

    @property
    def tasks(self) -> set[Task]:
        """What is outstanding, as the plan sees it."""
        return {asked.task for asked in self._asked.values()}

    @property
    def verbs(self) -> set[Verb]:
        """What is outstanding, without the rounds."""
        return {task.verb for task in self.tasks}

    def new_life(self) -> None:
        """The coordinator died, and its journal may have lost the last steps: numbers they had must not come again."""
        self._number += NUMBERS_PER_LIFE

    def next_number(self) -> int:
        """The number of the next step."""
        self._number += 1
        return self._number

    def add(self, asked: Asked) -> None:
        """A new step."""
        self._asked[asked.step.number] = asked

    def remove(self, asked: Asked) -> None:
        """It is over, one way or another."""
        del self._asked[asked.step.number]

    def handed_out(self, number: int) -> Asked | None:
        """The step, if it is outstanding and its side may know of it."""
        asked = self._asked.get(number)
        return asked if asked is not None and asked.began_s is not None else None

    def under_way(self, number: int, attempt: int) -> Asked | None:
        """The step, if this very attempt at it is under way, or held."""
        asked = self._asked.get(number)
        if asked is None or asked.step.attempt != attempt or (asked.waiting and asked.held_since_s is None):
            return None
        return asked

    def held(self, number: int) -> Asked | None:
        """The step, if it is held."""
        asked = self._asked.get(number)
        return asked if asked is not None and asked.held_since_s is not None else None

    def waiting(self, number: int, attempt: int) -> Asked | None:
        """The step, if it waits to be handed out for this attempt."""
        asked = self._asked.get(number)
        return asked if asked is not None and asked.waiting and asked.step.attempt == attempt else None

    def begin(self, asked: Asked, at_s: float) -> None:
        """It is being handed out."""
        asked.waiting = False
        asked.began_s = at_s if asked.began_s is None else asked.began_s
        self.begun.add(asked.task.verb)

    def again(self, asked: Asked) -> Wait:
        """The next attempt at a step, after its back-off."""
        asked.step = replace(asked.step, attempt=asked.step.attempt + 1)
        asked.waiting = True
        return Wait(step=asked.step, seconds=retries.back_off_s(asked.task.verb, asked.step.attempt))
