"""How many steps a run has, from its measured speed and the time it is given, and where its schedule stands meanwhile.

Plain numbers, no clock: `planned_end.PlannedEnd` gives them HF's `Trainer`, `averaged_training.AveragedRun` its own.
"""

import math
import statistics
from dataclasses import asdict, dataclass
from typing import Any, Literal

WARM_UP = 2  # steps that are not measured: buffers grow, layers compile
RECENT = 15  # steps whose median is the speed
SLACK = 0.03  # share of the steps to come by which a plan may be wrong before it is made anew
NEWS = 0.1  # share of a plan by which it has to change to be said again: on a shared machine it wavers all the time
NEARLY = 0.9  # share of a schedule behind which a run that is cut off is called nearly done
ENDED = 0.99  # share of a schedule behind which nothing is left to learn: time may end a run a step before its plan


def planned_steps(done: int, seconds_per_step: float, seconds_left: float, max_steps: int) -> int:
    """The step at which a run ends that has done `done`: as many more as fit into the time left, at most all."""
    return min(max_steps, done + max(0, math.floor(seconds_left / seconds_per_step)))


class Speed:
    """Seconds a step: the median of the latest ones, and what lies between (data, evaluation, saving) shared out.

    Without the steps that warm up, but where there are no others.
    """

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.between: list[float] = []

    def add(self, step: float, between: float) -> None:
        """One more step, and the seconds since the one before."""
        self.steps.append(step)
        self.between.append(between)

    def known(self) -> bool:
        """Whether steps were measured beyond those that warm up."""
        return len(self.steps) > WARM_UP

    def seconds_per_step(self) -> float:
        """Of the steps to come."""
        steps, between = (times[WARM_UP:] or times for times in (self.steps, self.between))
        return statistics.median(steps[-RECENT:]) + statistics.fmean(between)


@dataclass
class StepPlan:
    """A run of at most `max_steps`, and the position in their schedule that each step of the planned ones has.

    Until something is planned a step has its own position. From a plan on the rest of the schedule is spread evenly
    over the steps that are left, so that it ends with the last one, whatever the speed.
    """

    max_steps: int
    end: int  # the step after which the run ends
    step: int = 0  # where the plan was made, and
    position: float = 0.0  # what the schedule had come to there
    seconds: float = 0.0  # trained so far, over all runs of the training
    seconds_per_step: float | None = None  # None: not measured
    seconds_given: float | None = None  # None: no limit
    told: int = 0  # the end that was last said

    def at(self, step: int) -> float:
        """Position in the schedule, in [0, max_steps], after `step` steps."""
        if step >= self.end and self.end > self.step:
            return float(self.max_steps)
        if self.end <= self.step:
            return self.position
        rate = (self.max_steps - self.position) / (self.end - self.step)
        return self.position + max(0, step - self.step) * rate

    def replan(self, step: int, end: int) -> None:
        """From `step` on the run ends after `end` steps."""
        self.position = self.at(step)
        self.step, self.end = step, max(step, end)

    def measured(self, step: int, seconds_per_step: float, seconds_left: float) -> bool:
        """Plan anew where the speed asks for it; whether it did."""
        self.seconds_per_step = seconds_per_step
        end = planned_steps(step, seconds_per_step, seconds_left, self.max_steps)
        off = abs(end - self.end)
        if off == 0 or (step < self.end and end > step and off <= max(1.0, SLACK * (self.end - step))):
            return False
        self.replan(step, end)
        return True

    def is_news(self) -> bool:
        """Whether the planned end is so far from the one that was last said that it is said now."""
        if abs(self.end - self.told) <= NEWS * self.end:
            return False
        self.told = self.end
        return True

    def ending(self, step: int) -> Literal["whole", "shortened", "cut"]:
        """How a run that stopped after `step` has ended: with all its steps, with those planned, or before its end.

        One that is `shortened` came to the end of its schedule, to a hundredth; one that is `cut` did not.
        """
        if step >= self.max_steps:
            return "whole"
        return "shortened" if step >= self.end and self.at(step) >= ENDED * self.max_steps else "cut"

    def sentence(self, step: int) -> str:
        """What to say first of a run that stopped after `step`; empty where it has had all its steps."""
        ending = self.ending(step)
        if ending == "whole":
            return ""
        given = "" if self.seconds_given is None else f" in the {self.seconds_given / 60:.3g} minutes it was given"
        if ending == "shortened":
            return f"Shortened: {step} of {self.max_steps} steps{given}, planned so that the schedule ended with them."
        share = 100 * self.at(step) / self.max_steps
        how = "half-trained" if share < 100 * NEARLY else "nearly done"
        return f"Cut off after {step} of {self.max_steps} steps{given}, {share:.0f} % of the schedule: {how}."

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self)

    @classmethod
    def restored(cls, state: dict[str, Any], step: int, max_steps: int) -> "StepPlan":
        """The plan of a checkpoint of `step` steps for a run of `max_steps`, which may have more or fewer now."""
        kept = cls(**state)
        return cls(max_steps, max_steps, step, min(kept.at(step), max_steps), kept.seconds, kept.seconds_per_step)

    def go_on(self, step: int, minutes: float | None) -> float:
        """Begin, or go on, after `step` steps with `minutes` for the whole training; returns the seconds left.

        They are those that earlier runs have not used, or all of them again where none is left. None: no limit.
        """
        end = self.max_steps
        left = self.seconds_given = None if minutes is None else 60 * minutes
        if self.seconds_given is not None and self.seconds < self.seconds_given:
            left = self.seconds_given - self.seconds
        if left is not None and self.seconds_per_step is not None:
            end = max(step + 1, planned_steps(step, self.seconds_per_step, left, self.max_steps))
        if self.at(step) >= self.max_steps:  # the schedule has ended: nothing is left to learn at its rate of 0
            end = step
        self.replan(step, end)
        return math.inf if left is None else left
