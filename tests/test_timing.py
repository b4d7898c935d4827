"""Two ways are timed in turn, so that what slows the machine slows both."""

import pytest

from forethought.timing import Comparison, alternate


class FakeClock:
    """Seconds that pass only when work is done."""

    def __init__(self):
        self.now = 0.0
        self.events = []

    def __call__(self):
        return self.now

    def work(self, name, *times_s):
        """Work that takes `times_s` in turn."""
        times = iter(times_s)

        def run():
            self.events.append(name)
            self.now += next(times)

        return run


def test_alternate_times_pairs_in_turn():
    """A warm-up pair is run and not counted; then a, b, a, b."""
    clock = FakeClock()
    a, b = clock.work("a", 99.0, 4.0, 6.0, 8.0), clock.work("b", 99.0, 2.0, 1.0, 2.0)
    comparison = alternate(a, b, repeats=3, clock=clock)
    assert clock.events == ["a", "b"] * 4
    assert comparison == Comparison(a_s=(4.0, 6.0, 8.0), b_s=(2.0, 1.0, 2.0))
    assert comparison.ratios == (2.0, 6.0, 4.0)
    assert (comparison.ratio, comparison.ratio_min, comparison.ratio_max) == (4.0, 2.0, 6.0)
    assert (comparison.a_median_s, comparison.b_median_s) == (6.0, 2.0)


def test_alternate_waits_for_the_device_inside_the_time():
    """What a run left queued on the device is its own time, not the next run's."""
    clock = FakeClock()
    queue = []

    def wait():
        clock.now += sum(queue)
        queue.clear()

    comparison = alternate(
        lambda: queue.append(3.0),
        lambda: queue.append(1.0),
        repeats=2,
        warmup=1,
        synchronize=wait,
        clock=clock,
    )
    assert comparison == Comparison(a_s=(3.0, 3.0), b_s=(1.0, 1.0))


@pytest.mark.parametrize(("repeats", "time_s"), [(0, 1.0), (2, 0.0)])
def test_alternate_refuses_what_gives_no_ratio(repeats, time_s):
    """No pairs, or runs that the clock cannot see, give no ratio."""
    clock = FakeClock()
    with pytest.raises(ValueError, match="Cannot compare"):
        alternate(clock.work("a", *[time_s] * 9), clock.work("b", *[time_s] * 9), repeats=repeats, clock=clock)
