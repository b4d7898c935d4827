"""Time two ways of doing the same thing, alternately, so that a busy machine slows both."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Comparison:
    """Times of `a` and `b`, pair by pair, and how many times longer `a` took.

    Args:
        a_s: Seconds of each run of `a`.
        b_s: Seconds of each run of `b`, in the same order.

    Example:
        >>> print(Comparison(a_s=(4.0, 6.0, 8.0), b_s=(2.0, 2.0, 2.0)))
        3.00 x (2.00 to 4.00 in 3 pairs): 6 s against 2 s
    """

    a_s: tuple[float, ...]
    b_s: tuple[float, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        """Time of `a` over time of `b`, one a pair; above 1 when `b` is faster."""
        return tuple(a / b for a, b in zip(self.a_s, self.b_s, strict=True))

    @property
    def ratio(self) -> float:
        """Median of the ratios."""
        return median(self.ratios)

    @property
    def ratio_min(self) -> float:
        """The pair least in favour of `b`."""
        return min(self.ratios)

    @property
    def ratio_max(self) -> float:
        """The pair most in favour of `b`."""
        return max(self.ratios)

    @property
    def a_median_s(self) -> float:
        """Median time of `a` in seconds."""
        return median(self.a_s)

    @property
    def b_median_s(self) -> float:
        """Median time of `b` in seconds."""
        return median(self.b_s)

    def __str__(self) -> str:
        """One line that may be quoted."""
        return (
            f"{self.ratio:.2f} x ({self.ratio_min:.2f} to {self.ratio_max:.2f} in {len(self.a_s)} pairs):"
            f" {self.a_median_s:.3g} s against {self.b_median_s:.3g} s"
        )


def alternate(
    a: Callable[[], object],
    b: Callable[[], object],
    *,
    repeats: int,
    warmup: int = 1,
    synchronize: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Comparison:
    """Run `a` and `b` in turn and time each run.

    Args:
        a: The way of today; its result is dropped.
        b: The way to compare with it.
        repeats: Pairs to time.
        warmup: Pairs to run before, untimed.
        synchronize: Waits for the device, such as `torch.cuda.synchronize`; called around each run.
        clock: Seconds, monotonic.

    Raises:
        ValueError: no pair to time, or a run too short for the clock.
    """
    if repeats < 1:
        raise ValueError(f"Cannot compare: expected repeats of at least 1, got {repeats}. Pass repeats=5.")

    def seconds(work: Callable[[], object]) -> float:
        synchronize()
        start = clock()
        work()
        synchronize()
        return clock() - start

    for _ in range(warmup):
        a()
        b()
    pairs = [(seconds(a), seconds(b)) for _ in range(repeats)]
    a_s, b_s = zip(*pairs, strict=True)
    if min(a_s + b_s) <= 0:
        raise ValueError(
            "Cannot compare: expected runs that the clock can see, got one of 0 s. Repeat the work inside `a` and `b`."
        )
    return Comparison(a_s, b_s)
