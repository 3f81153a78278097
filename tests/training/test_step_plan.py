"""The plan of a run's steps, on made-up speeds: no clock."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unified.training.step_plan import Speed, StepPlan, planned_steps


@pytest.mark.parametrize(
    ("done", "rate", "left", "planned"),
    [
        (5, 2.0, 600.0, 305),
        (5, 2.0, 1e9, 340),  # never more than were asked for
        (5, 2.0, 1.9, 5),
        (5, 2.0, -7.0, 5),
        (0, 92.0, 600.0, 6),  # the third kind's 6 of 340
    ],
)
def test_as_many_steps_as_fit(done: int, rate: float, left: float, planned: int) -> None:
    assert planned_steps(done, rate, left, 340) == planned


def run(plan: StepPlan, speeds: list[float], seconds: float) -> tuple[int, float]:
    """Steps and time of a run whose steps take `speeds`, measured as it goes; the last speed stays."""
    step, elapsed = 0, 0.0
    while step < plan.end:
        taken = speeds[min(step, len(speeds) - 1)]
        step, elapsed = step + 1, elapsed + taken
        plan.measured(step, taken, seconds - elapsed)
    return step, elapsed


@settings(deadline=None)
@given(
    st.integers(1, 400),
    st.lists(st.floats(0.1, 30), min_size=1, max_size=8),
    st.floats(1, 3000),
)
def test_the_schedule_ends_with_the_time_whatever_the_speed(total: int, speeds: list[float], seconds: float) -> None:
    plan = StepPlan(total, total)
    step, elapsed = run(plan, speeds, seconds)
    last = speeds[min(step - 1, len(speeds) - 1)]
    assert elapsed <= seconds + max(1, 0.03 * total) * last + speeds[0]
    ending = plan.ending(step)
    assert plan.at(step) == total if ending != "cut" else step < total
    if ending == "cut":  # it went slower than any plan could know, or had no time for a second step
        assert elapsed + last > seconds
    if len(speeds) == 1 and seconds >= 2 * speeds[0]:
        assert ending in ("whole", "shortened")


def test_the_position_moves_on_without_jumps_and_never_back() -> None:
    plan, seen = StepPlan(340, 340), [0.0]
    for step in range(1, 70):
        seen.append(plan.at(step))
        if step in (5, 20, 50):
            plan.replan(step, {5: 100, 20: 60, 50: 69}[step])
            assert plan.at(step) == pytest.approx(seen[-1])
    assert seen == sorted(seen) and seen[-1] == 340 and seen[5] == 5


def test_small_changes_of_speed_leave_the_plan_alone() -> None:
    plan = StepPlan(1000, 1000)
    assert plan.measured(10, 1.0, 200.0) and plan.end == 210
    assert not plan.measured(20, 1.01, 190.0) and plan.end == 210
    assert plan.measured(30, 2.0, 180.0) and plan.end == 120
    assert plan.measured(40, 1.0, 170.0) and plan.end == 210  # the other program has gone
    assert plan.measured(150, 1.0, 0.5) and plan.end == 150  # no time is left


def test_without_a_limit_nothing_is_planned() -> None:
    plan = StepPlan(10, 10)
    assert [plan.at(step) for step in range(11)] == list(range(11)) and plan.ending(10) == "whole"


def test_a_run_that_was_cut_says_so_and_one_that_was_shortened_says_what_that_means() -> None:
    plan = StepPlan(340, 340, seconds_given=600.0)
    assert plan.sentence(340) == ""
    assert plan.sentence(69) == (
        "Cut off after 69 of 340 steps in the 10 minutes it was given, 20 % of the schedule: half-trained."
    )
    plan.replan(10, 69)
    assert plan.ending(69) == "shortened" and plan.ending(68) == "cut"
    assert plan.sentence(69).startswith("Shortened: 69 of 340 steps in the 10 minutes it was given, planned so")


def resumed(plan: StepPlan, step: int, total: int, minutes: float | None) -> tuple[StepPlan, float]:
    again = StepPlan.restored(plan.state(), step, total)
    return again, again.go_on(step, minutes)


def test_a_run_that_goes_on_has_the_time_that_is_left() -> None:
    plan = StepPlan(340, 340, seconds=360.0, seconds_per_step=4.0)
    plan.replan(10, 150)
    again, left = resumed(plan, 90, 340, 10.0)
    assert left == 240.0 and again.end == 150
    assert again.at(90) == pytest.approx(plan.at(90)) and again.at(150) == 340


def test_a_run_that_was_cut_when_its_time_was_over_goes_on_with_the_same_command() -> None:
    plan = StepPlan(6, 6, seconds=70.0, seconds_per_step=20.0)
    plan.replan(3, 3)
    again, left = resumed(plan, 3, 6, 1.0)
    assert left == 60.0 and again.end == 6 and again.at(3) == 3


def test_without_its_limit_a_run_goes_on_to_all_its_steps() -> None:
    plan = StepPlan(6, 6, seconds=70.0, seconds_per_step=20.0)
    plan.replan(1, 1)
    again, _ = resumed(plan, 1, 6, None)
    assert again.end == 6 and [again.at(step) for step in range(1, 7)] == [1, 2, 3, 4, 5, 6]


def test_a_run_that_has_ended_trains_no_further_unless_it_gets_more_steps() -> None:
    plan = StepPlan(340, 340, seconds=600.0, seconds_per_step=4.0)
    plan.replan(10, 150)
    again, _ = resumed(plan, 150, 340, 20.0)
    assert again.end == 150 and again.ending(150) == "shortened"
    more, left = resumed(plan, 150, 680, 20.0)
    assert more.end == 300 and more.at(150) == 340 and more.at(300) == 680 and left == 600.0


def test_speed_is_of_late_steps_and_shares_out_what_lies_between() -> None:
    speed = Speed()
    speed.add(30.0, 0.0)  # compiles
    assert speed.seconds_per_step() == 30.0 and not speed.known()
    speed.add(9.0, 0.0)
    for step in range(40):
        speed.add(1.0 if step < 20 else 3.0, 60.0 if step == 10 else 0.0)  # an evaluation; then another program
    assert speed.known() and speed.seconds_per_step() == pytest.approx(3.0 + 60.0 / 40)


def test_a_last_step_that_did_not_fit_is_no_cut() -> None:
    plan = StepPlan(300, 231)
    plan.replan(230, 230)
    assert plan.ending(230) == "shortened" and "half-trained" not in plan.sentence(230)
    early = StepPlan(300, 231)
    early.replan(200, 200)
    assert early.ending(200) == "cut"


def test_a_plan_that_wavers_is_said_once() -> None:
    plan, said = StepPlan(4000, 4000), []
    for step, rate in enumerate((1.0, 1.08, 0.95, 2.0, 1.95, 2.05), start=10):
        if plan.measured(step, rate, 1000.0) and plan.is_news():
            said.append(plan.end)
    assert said == [1010, 513]


def test_a_run_that_is_cut_off_just_before_its_end_is_no_half_trained_one() -> None:
    for share, said in ((0.2, "20 % of the schedule: half-trained."), (0.98, "98 % of the schedule: nearly done.")):
        assert StepPlan(4000, 4000, step=106, position=share * 4000).sentence(106).endswith(said)
