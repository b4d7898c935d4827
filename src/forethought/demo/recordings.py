"""Choose recordings whose pitch is exactly known; say which are one take and which are one instrument.

A player sustains a note by repeating its loop. L samples repeated at rate r are periodic with L, whatever
they sound like, so when the loop holds n cycles of the tone its mean pitch is n r / L: arithmetic, not an
estimate. Only the whole number n has to be found, and two witnesses that know nothing of each other must
agree on it: the root key and tunings that the SoundFont declares, and a difference-function estimate (YIN, de
Cheveigné and Kawahara 2002) of our own. The estimate also looks at short windows all along the loop, so a
loop whose pitch wobbles, an ensemble, a drum, or a sample an octave away from its declared root is left out.
CREPE is never asked.

    take        recordings of one sound: halves of a stereo pair, or one loop stored twice, at two rates say
    instrument  takes that a preset plays together or that share a name but for the note: "Tuba D1", "Tuba F1"
"""

import re
from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from forethought.demo.soundfont import PERCUSSION_BANK, Preset, SoundFont, Zone

Array = NDArray[np.float64]

# General MIDI programs, from 0. Left out: percussion and noises (112 to 127), and synthesiser leads, pads and
# effects (80 to 103): they layer the recordings of others and would join half of all instruments into one.
PROGRAMS = frozenset([*range(80), *range(104, 112)])
LOWEST_HZ, HIGHEST_HZ = 65.4, 1975.6  # MIDI 36 to 95: below CREPE's last bin (2005.5 Hz)
AGREEMENT_CENTS = 50.0  # declared against true; half way to the next key
STEADINESS_CENTS = 5.0  # any window of the loop against its mean
MAX_APERIODICITY = 0.1  # share of a window's power that does not repeat after one period
_WINDOWS, _WINDOW_S = 20, 0.064  # 64 ms is what CREPE hears
_SHORTEST_LOOP = 8  # samples; fewer hold no timbre
_SAME_SHAPE = 0.995  # correlation of one cycle; at equal pitch only, for any two near-sines are alike
_SAME_PITCH_CENTS = 30.0


@dataclass(frozen=True, eq=False)
class Recording:
    """A loop of whole cycles. Pitches are in cents above 10 Hz, CREPE's scale.

    Attributes:
        sample: Its index in the SoundFont.
        name: As the SoundFont has it.
        program: The lowest General MIDI program that plays it.
        instrument: Named after the lowest program of all its recordings.
        take: Equal for recordings of one sound.
        loop: (L,), mean 0.
        cycles: Whole periods of the tone in the loop.
        sample_rate_hz: Rate of the loop.
        declared_cents: Pitch by root key and tunings: the first witness.
        measured_cents: Pitch by the median of our estimates: the second.
    """

    sample: int
    name: str
    program: int
    instrument: str
    take: int
    loop: Array
    cycles: int
    sample_rate_hz: int
    declared_cents: float
    measured_cents: float

    @property
    def hz(self) -> float:
        """The mean pitch of the repeated loop, exactly."""
        return self.cycles * self.sample_rate_hz / len(self.loop)

    @property
    def cents(self) -> float:
        """The same in cents."""
        return float(_cents(self.hz))

    @cached_property
    def spectrum(self) -> NDArray[np.complex128]:
        """Fourier coefficients of the loop, (L // 2 + 1,): all there is to know about the repeated loop."""
        return np.fft.rfft(self.loop) / len(self.loop)


def choose_recordings(font: SoundFont) -> tuple[Recording, ...]:
    """Choose every melodic recording whose pitch is exactly known, in file order. No chance is involved."""
    homes: dict[int, tuple[int, Zone]] = {}
    for preset in _melodic(font):
        for zone in preset.zones:
            homes.setdefault(zone.sample, (preset.program, zone))  # the lowest program speaks for a recording
    examined = [_examine(font, program, zone) for _, (program, zone) in sorted(homes.items())]
    return _name_instruments(font, _join_takes(font, [r for r in examined if r is not None]))


def count_candidates(font: SoundFont) -> int:
    """Count the recordings that `choose_recordings` looks at."""
    return len({zone.sample for preset in _melodic(font) for zone in preset.zones})


def measure_pitch(windows: Array, sample_rate_hz: int) -> tuple[Array, Array]:
    """Estimate the fundamental of each window by YIN's difference function.

    Args:
        windows: (M, W + T): the first W samples are compared with those up to T, the longest period, later.
        sample_rate_hz: Rate of the windows.

    Returns:
        Hz (M,), and aperiodicity (M,) at the nearest whole sample: near 0 for a tone, about 1 for noise.
    """
    longest = _longest_period(sample_rate_hz)
    difference = _difference(windows, longest)
    # YIN, step 3: dividing by the running mean keeps lag 0 from winning.
    running = np.cumsum(difference[:, 1:], axis=1) / np.arange(1, longest)
    relative = np.pad(difference[:, 1:] / np.maximum(running, 1e-9), ((0, 0), (1, 0)), constant_values=2.0)
    shortest = int(sample_rate_hz / 2400)
    inner = relative[:, shortest : longest - 1]
    dips = (inner <= relative[:, shortest - 1 : longest - 2]) & (inner < relative[:, shortest + 1 : longest])
    good = dips & (inner < 0.15)  # step 4: the first deep dip, so that multiples of the period lose
    lags = shortest + np.where(good.any(axis=1), good.argmax(axis=1), inner.argmin(axis=1))
    periods = np.array([_refine(row, lag) for row, lag in zip(difference, lags, strict=True)])
    return sample_rate_hz / periods, difference[np.arange(len(windows)), lags]


def _melodic(font: SoundFont) -> list[Preset]:
    return [p for p in font.presets if p.bank != PERCUSSION_BANK and p.program in PROGRAMS]


def _examine(font: SoundFont, program: int, zone: Zone) -> Recording | None:
    """Give the recording when both witnesses agree on its number of cycles, else None."""
    sample = font.samples[zone.sample]
    length, rate = zone.loop_end - zone.loop_start, sample.sample_rate_hz
    declared_hz = 440 * 2 ** ((zone.root_key - zone.tune_cents / 100 - 69) / 12)
    inside = sample.start <= zone.loop_start and zone.loop_end <= sample.end
    # A wider range, half a semitone, saves estimates; the true pitch is held to the narrow one below.
    if length < _SHORTEST_LOOP or not inside or not LOWEST_HZ / 1.03 <= declared_hz <= HIGHEST_HZ * 1.03:
        return None
    loop = font.pcm[zone.loop_start : zone.loop_end].astype(np.float64)
    loop -= loop.mean()
    if not loop.any():
        return None
    hz, aperiodicity = measure_pitch(_loop_windows(loop, rate), rate)
    recording = Recording(
        sample=zone.sample,
        name=sample.name,
        program=program,
        instrument="",
        take=zone.sample,
        loop=loop,
        cycles=max(1, round(length * float(np.median(hz)) / rate)),
        sample_rate_hz=rate,
        declared_cents=float(_cents(declared_hz)),
        measured_cents=float(_cents(float(np.median(hz)))),
    )
    steady = np.abs(_cents(hz) - recording.cents).max() <= STEADINESS_CENTS
    agreed = abs(recording.declared_cents - recording.cents) <= AGREEMENT_CENTS
    tonal = aperiodicity.max() <= MAX_APERIODICITY and not _is_octave_ambiguous(recording)
    in_range = LOWEST_HZ <= recording.hz <= HIGHEST_HZ
    return recording if steady and agreed and tonal and in_range else None


def _is_octave_ambiguous(recording: Recording) -> bool:
    """Say whether the tone all but repeats after a half or a third of its period."""
    power = np.abs(recording.spectrum[recording.cycles :: recording.cycles]) ** 2  # of harmonics 1, 2, 3, ...
    return any(1 - power[m - 1 :: m].sum() / power.sum() < MAX_APERIODICITY for m in (2, 3))


def _cents(hz: float | Array) -> Array:
    return np.asarray(1200 * np.log2(np.asarray(hz) / 10))


def _longest_period(rate: int) -> int:
    return int(rate / 28) + 2  # lower than any root that is let in


def _loop_windows(loop: Array, rate: int) -> Array:
    """Cut windows at even steps along the repeated loop, (M, W + T)."""
    width = int(_WINDOW_S * rate) + _longest_period(rate)
    starts = np.arange(_WINDOWS) * len(loop) // _WINDOWS
    if len(loop) < _WINDOW_S * rate:  # every window then holds the whole loop: one tells all
        starts = starts[:1]
    return np.asarray(loop[(starts[:, None] + np.arange(width)) % len(loop)])


def _difference(windows: Array, longest: int) -> Array:
    """Give the power of x(t) - x(t + lag) over that of both, (M, longest); 0 where the window repeats."""
    width = windows.shape[1] - longest
    size = 1 << (windows.shape[1] + width - 1).bit_length()
    first = np.fft.rfft(windows[:, :width], size)
    correlation = np.fft.irfft(np.conj(first) * np.fft.rfft(windows, size), size)[:, :longest]
    power = np.cumsum(np.pad(windows**2, ((0, 0), (1, 0))), axis=1)
    power = power[:, width : width + longest] - power[:, :longest]
    return np.asarray(1 - 2 * correlation / np.maximum(power[:, :1] + power, 1e-9))


def _refine(difference: Array, lag: int) -> float:
    """Sharpen a period by parabolas at its multiples: the error of the k-th is divided by k."""
    period, multiple = float(lag), 1
    while (near := round(period * multiple)) < len(difference) - 2:
        near += int(np.argmin(difference[near - 1 : near + 2])) - 1
        left, middle, right = difference[near - 1 : near + 2]
        curve = left - 2 * middle + right
        if curve <= 0:
            break
        sharper = (near + 0.5 * (left - right) / curve) / multiple
        if multiple > 1 and abs(sharper - period) * multiple > 1:  # another dip than this period's
            break
        period, multiple = sharper, multiple + 1
    return period


def _join_takes(font: SoundFont, recordings: list[Recording]) -> list[Recording]:
    """Give recordings of one sound the same `take`."""
    groups = _Groups()
    for recording in recordings:
        groups.join(recording.sample, ("half of", re.sub(r"\s*[LR]$", "", recording.name)))
        partner = font.samples[recording.sample].partner
        if partner is not None:
            groups.join(recording.sample, partner)
    for one, other in combinations(recordings, 2):
        if abs(one.cents - other.cents) < _SAME_PITCH_CENTS and _shape_likeness(one, other) > _SAME_SHAPE:
            groups.join(one.sample, other.sample)
    takes = groups.number(r.sample for r in recordings)
    return [replace(r, take=takes[r.sample]) for r in recordings]


def _shape_likeness(one: Recording, other: Recording) -> float:
    """Give the greatest correlation over all shifts of one mean cycle each, by the first 16 harmonics."""
    shapes = np.zeros((2, 16), dtype=np.complex128)
    for shape, recording in zip(shapes, (one, other), strict=True):
        harmonics = recording.spectrum[recording.cycles :: recording.cycles][:16]
        shape[: len(harmonics)] = harmonics / max(float(np.linalg.norm(harmonics)), 1e-9)
    return float(np.abs(np.fft.ifft(shapes[0] * np.conj(shapes[1]), 256)).max() * 256)


def _name_instruments(font: SoundFont, recordings: list[Recording]) -> tuple[Recording, ...]:
    """Give takes that must not be parted the same `instrument`, named after its lowest program."""
    groups = _Groups()
    for recording in recordings:
        groups.join(("take", recording.take), ("sample", recording.sample))
        groups.join(("take", recording.take), ("stem", re.sub(r"\s*[A-G][b#]?-?\d+$", "", recording.name)))
    chosen = {r.sample for r in recordings}
    names: dict[int, str] = {}
    for preset in _melodic(font):
        names.setdefault(preset.program, preset.name)
        for zone in preset.zones:
            if zone.sample in chosen:
                groups.join(("program", preset.program), ("sample", zone.sample))
    homes = [groups.find(("sample", r.sample)) for r in recordings]
    lowest: dict[Hashable, int] = {}
    for home, recording in zip(homes, recordings, strict=True):
        lowest[home] = min(recording.program, lowest.get(home, recording.program))
    named = (replace(r, instrument=names[lowest[home]]) for home, r in zip(homes, recordings, strict=True))
    return tuple(named)


class _Groups:
    """Things joined directly or through others are in one group (union-find)."""

    def __init__(self) -> None:
        self._parents: dict[Hashable, Hashable] = {}

    def find(self, thing: Hashable) -> Hashable:
        while (parent := self._parents.setdefault(thing, thing)) != thing:
            thing = parent
        return thing

    def join(self, one: Hashable, other: Hashable) -> None:
        self._parents[self.find(one)] = self.find(other)

    def number(self, things: Iterable[Hashable]) -> dict[Hashable, int]:
        """Number the groups from 0 in the order in which they are met."""
        numbers: dict[Hashable, int] = defaultdict(lambda: len(numbers))
        return {thing: numbers[self.find(thing)] for thing in things}
