"""How many steps fit into the seconds given."""

from collections.abc import Iterator

import pytest

from shine_em import pacing
from shine_em.pacing import Planner


class Clock:
    """A clock that is moved on by hand."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(pacing, "time", clock)
    return clock


def planned(planner: Planner, clock: Clock, paces: Iterator[float]) -> tuple[int, int]:
    """Return after how many steps the number of steps was known, and the number."""
    for step in range(1, 1000):
        clock.now += next(paces)
        found = planner.steps(step)
        if found is not None:
            return step, found
    raise AssertionError("never planned")


def steadily(pace: float, *, slow: int = 0) -> Iterator[float]:
    for _ in range(slow):
        yield 3 * pace
    while True:
        yield pace


@pytest.mark.parametrize("slow", [0, 4, 8])
def test_the_time_is_filled_but_not_exceeded(clock, slow):
    known_at, steps = planned(Planner(60.0, 0.0, first=0), clock, steadily(0.1, slow=slow))
    whole = clock.now + 0.1 * (steps - known_at)
    assert 0.9 * 60 < whole < 60


def test_slow_steps_are_counted_on_after_a_few(clock):
    """They must not eat up the time in which they are timed."""
    known_at, steps = planned(Planner(60.0, 0.0, first=0), clock, steadily(3.0))
    assert known_at == Planner.least
    assert clock.now + 3.0 * (steps - known_at) <= 60


def test_quick_steps_are_timed_for_long_enough(clock):
    """A card has its steps recorded first, and then makes hundreds in a second."""
    clock.now += 2.0
    known_at, steps = planned(Planner(10.0, 0.0, first=0), clock, steadily(0.004))
    assert 0.004 * known_at >= Planner.long_enough
    assert 0.9 * 10 < clock.now + 0.004 * (steps - known_at) < 10


def test_no_steps_are_promised_when_the_time_is_over(clock):
    known_at, steps = planned(Planner(10.0, 0.0, first=0), clock, steadily(5.0))
    assert steps == known_at


def test_without_a_time_there_is_nothing_to_plan(clock):
    planner = Planner(None, 0.0, first=0)
    clock.now = 1.0
    assert [planner.steps(k) for k in range(50)] == [None] * 50
    assert planner.expected(50) is None
    assert not planner.out_of_time()


def test_a_resumed_run_counts_from_where_it_was(clock):
    planner = Planner(60.0, 0.0, first=500)
    for k in range(1, 100):
        clock.now += 0.1
        found = planner.steps(500 + k)
        if found is not None:
            break
    assert found == pytest.approx(500 + 0.92 * 600, abs=6)


@pytest.mark.parametrize("later", [0.2, 0.5, 0.93, 1.08, 2.0, 3.0])
@pytest.mark.parametrize("when", [20, 60, 300])
def test_a_machine_that_turns_out_quicker_or_slower_is_noticed(clock, later, when):
    """Other work may end, or begin, after the first steps were timed."""
    planner = Planner(60.0, 0.0, first=0)
    step, steps = 0, None
    while steps is None or step < steps:
        clock.now += 0.1 if step < when else 0.1 * later
        step += 1
        steps = planner.steps(step)
    assert not planner.out_of_time()
    assert clock.now > 0.92 * 60


def test_the_number_of_steps_changes_a_few_times_only(clock):
    planner = Planner(60.0, 0.0, first=0)
    plans = []
    for step in range(1, 1000):
        clock.now += 0.1 if step < 100 else 0.05 + 0.0001 * (step % 7)
        plans.append(planner.steps(step))
    assert 1 < len({p for p in plans if p}) <= 1 + len(Planner.looks)
