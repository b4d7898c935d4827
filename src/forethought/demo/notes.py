"""Play recordings at any pitch and deal the notes out: train, validation, test, and instruments never heard.

A note is one recording at one pitch; a frame is 64 ms of it, as CREPE takes them. Pitch is exact by
construction: the loop of a recording repeats with a known period (recordings.py), and playing it faster or
slower scales that period.

Nothing leaks between the sides:
  - An unseen instrument is held out whole: nothing it plays, nor anything of its name, is on another side.
  - A take of a seen instrument (what a musician played once, stereo halves and second copies included) goes
    wholly to train, to validation or to test. So no note stands on two sides, nor a recording at two pitches.
  - The deal follows from the seed alone, before any model is run.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from forethought.demo.recordings import HIGHEST_HZ, LOWEST_HZ, Array, Recording, choose_recordings
from forethought.demo.soundfont import find_soundfont, read_soundfont
from forethought.errors import DataError

SAMPLE_RATE_HZ = 16_000
FRAME = 1024  # samples, 64 ms
A4_CENTS = 1200 * math.log2(44)  # 440 Hz above 10 Hz
REACH_CENTS = 600.0  # farther from its own pitch a recording sounds unnatural
SNR_DB = (20.0, 60.0)  # white noise, drawn for each frame: loops are cleaner than any room

# Frames of train, validation, test and unseen. A frame takes 4 KiB: "default" 66 MB, "full" 1.3 GB.
SIZES = {
    "tiny": (400, 80, 80, 80),
    "default": (10_000, 2_000, 2_000, 2_000),
    "full": (250_000, 50_000, 10_000, 10_000),
}
_FRAMES_A_NOTE = 4
_UNSEEN_INSTRUMENTS = 8
_OVERSAMPLING = 32  # table points a period of the highest partial: cubics err by (3/128)(2 pi/32)^4, -89 dB

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Frames:
    """Frames of known pitch.

    Attributes:
        audio: (N, 1024) float32 at 16 kHz, each row with mean 0 and standard deviation 1, as CREPE wants it.
        cents: (N,) float32, the true pitch in cents above 10 Hz.
        note: (N,) int64; frames of one recording at one pitch share it. Unique over all sides.
        take: (N,) int64; frames of one recorded sound share it, at any pitch. Never on two sides.
        instrument: (N,) int64, an index into `instruments`.
        instruments: Names; the same tuple on every side.
    """

    audio: torch.Tensor
    cents: torch.Tensor
    note: torch.Tensor
    take: torch.Tensor
    instrument: torch.Tensor
    instruments: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.cents)


@dataclass(frozen=True, eq=False)
class Splits:
    """Four sides. `train`, `validation` and `test` share instruments but no take; `unseen` shares neither."""

    train: Frames
    validation: Frames
    test: Frames
    unseen: Frames


def make_splits(
    size: str | tuple[int, int, int, int] = "default",
    seed: int = 0,
    progress: Progress | None = None,
    *,
    semitones: bool = False,
) -> Splits:
    """Make notes of continuously varying pitch on every side, or of exact semitones.

    Args:
        size: "tiny", "default" or "full": `SIZES`; or how many frames of train, validation, test and unseen.
        seed: Decides the deal, the pitches, the positions and the noise.
        progress: Called now and then with (frames made, frames in all).
        semitones: Move each pitch to the nearest semitone of A4 = 440 Hz.

    Raises:
        DataError: no such size.
        MissingExtraError: pretty_midi, which brings the recordings, is not installed.
    """
    if isinstance(size, str) and size not in SIZES:
        raise DataError(
            f"Cannot make notes: expected a size among {', '.join(map(repr, SIZES))}, got {size!r}. "
            'make_splits("default")'
        )
    sizes = SIZES[size] if isinstance(size, str) else size
    sides = deal(library(), seed)
    names = tuple(sorted({r.instrument for side in sides for r in side}))
    made: list[Frames] = []
    for index, (recordings, rows) in enumerate(zip(sides, sizes, strict=True)):
        report = _offset(progress, sum(map(len, made)), sum(sizes))
        first_note = sum(sizes[:index])  # a side has fewer notes than frames
        rng = np.random.default_rng([seed, 1 + index])
        made.append(_play_side(recordings, rows, names, rng, first_note, report, 100.0 if semitones else None))
    return Splits(*made)


def glissando(seed: int = 0, rows: int = 601, span_cents: float = 600.0) -> Frames:
    """Sweep one test-side recording upward through `span_cents` around its own pitch, without noise.

    Pitch is constant within a frame and grows by equal steps between frames (1 cent by default), so it
    crosses an anchor of CREPE every 20 cents; the sound runs on in between, 10 ms a frame. The recording is
    the one nearest to A4 on the test side.
    """
    sides = deal(library(), seed)
    names = tuple(sorted({r.instrument for side in sides for r in side}))
    recording = min(sides[2], key=lambda r: abs(np.log2(r.hz / 440)))
    cents = recording.cents + np.linspace(-span_cents / 2, span_cents / 2, rows)
    steps = _step(recording, cents)
    starts = np.cumsum(steps * SAMPLE_RATE_HZ / 100)
    audio = np.concatenate([play(recording, c, starts[i : i + 1]) for i, c in enumerate(cents)])
    same = np.zeros(rows, dtype=np.int64)
    return Frames(
        audio=torch.from_numpy(_normalise(audio).astype(np.float32)),
        cents=torch.from_numpy(cents.astype(np.float32)),
        note=torch.arange(rows),
        take=torch.from_numpy(same + recording.take),
        instrument=torch.from_numpy(same + names.index(recording.instrument)),
        instruments=names,
    )


@lru_cache(maxsize=1)
def library() -> tuple[Recording, ...]:
    """Read and choose the recordings once in a process (about a second)."""
    return choose_recordings(read_soundfont(find_soundfont()))


def deal(recordings: Sequence[Recording], seed: int) -> tuple[list[Recording], ...]:
    """Deal recordings to train, validation, test and unseen, by whole takes and whole instruments.

    An instrument needs three takes to stand on three sides; those with fewer are left out.
    """
    rng = np.random.default_rng([seed, 0])
    instruments: dict[str, dict[int, list[Recording]]] = defaultdict(lambda: defaultdict(list))
    for recording in recordings:
        instruments[recording.instrument][recording.take].append(recording)
    enough = {name: list(takes.values()) for name, takes in instruments.items() if len(takes) >= 3}
    unseen = _hold_out(enough, rng)
    held_out = [r for name in unseen for take in enough[name] for r in take]
    sides: tuple[list[Recording], ...] = ([], [], [], held_out)
    for name in sorted(enough.keys() - set(unseen)):
        takes = enough[name]
        share = max(1, len(takes) // 5)
        for place, take in enumerate(rng.permutation(len(takes))):
            side = 1 if place < share else 2 if place < 2 * share else 0
            sides[side].extend(takes[take])
    return sides


def _hold_out(instruments: dict[str, list[list[Recording]]], rng: np.random.Generator) -> list[str]:
    """Draw instruments from each family in turn, never its last one: the unseen have seen relatives."""
    families = defaultdict(list)
    for name, takes in sorted(instruments.items()):
        program = min(r.program for take in takes for r in take)
        families[program // 8].append(name)  # General MIDI: eight programs a family
    queues = [[names[i] for i in rng.permutation(len(names))[1:]] for _, names in sorted(families.items())]
    queues = [queues[i] for i in rng.permutation(len(queues))]
    turns = [queue[turn] for turn in range(max(map(len, queues))) for queue in queues if turn < len(queue)]
    return sorted(turns[:_UNSEEN_INSTRUMENTS])


def play(recording: Recording, cents: float, starts: Array) -> Array:
    """Play a recording's loop at a pitch; partials above 8 kHz are left out, so none fold back.

    Args:
        recording: What to play.
        cents: Pitch above 10 Hz.
        starts: (F,) positions in the repeated loop, in its own samples.

    Returns:
        (F, 1024) at 16 kHz.
    """
    step = float(_step(recording, np.float64(cents)))
    length = len(recording.loop)
    # The repeated loop is a Fourier series. Partial k comes out at k * step / length cycles a sample: those
    # under 1/2 are kept.
    partials = max(1, min((length - 1) // 2, int(np.ceil(length / step / 2)) - 1))
    points = 1 << (_OVERSAMPLING * partials - 1).bit_length()
    table = np.fft.irfft(recording.spectrum[: partials + 1], points) * points
    places = np.mod(starts[:, None] + step * np.arange(FRAME), length) * (points / length)
    return _read_between(table, places)


def _step(recording: Recording, cents: Array | np.float64) -> Array:
    """Give loop samples for each output sample."""
    hz = 10 * 2 ** (np.asarray(cents) / 1200)
    return np.asarray(hz / recording.hz * recording.sample_rate_hz / SAMPLE_RATE_HZ)


def _read_between(table: Array, places: Array) -> Array:
    """Interpolate a periodic table by cubics through the four nearest points."""
    below = places.astype(np.int64)
    t = places - below
    a, b, c, d = (table.take(below + k, mode="wrap") for k in (-1, 0, 1, 2))
    # Newton's forward differences: few passes over large arrays.
    first, second, third = b - a, c - 2 * b + a, d - 3 * c + 3 * b - a
    u = t + 1
    return np.asarray(a + u * (first + (u - 1) * (second / 2 + (u - 2) * third / 6)))


def _normalise(audio: Array) -> Array:
    """Give each row mean 0 and (unbiased) standard deviation 1, as `torchcrepe.preprocess` does."""
    centred = audio - audio.mean(axis=1, keepdims=True)
    return np.asarray(centred / np.maximum(1e-10, centred.std(axis=1, ddof=1, keepdims=True)))


def _play_side(
    recordings: Sequence[Recording],
    rows: int,
    names: tuple[str, ...],
    rng: np.random.Generator,
    first_note: int,
    report: Progress,
    grid_cents: float | None = None,
) -> Frames:
    """Play `rows` frames: instruments in turn, recordings of each in turn, pitches even within reach, or on a grid."""
    queues = [[r for r in recordings if r.instrument == name] for name in names]
    queues = [queue for queue in queues if queue]
    audio = np.empty((rows, FRAME), dtype=np.float32)
    labels: NDArray[np.int64] = np.empty((3, rows), dtype=np.int64)
    cents = np.empty(rows, dtype=np.float32)
    low, high = (1200 * np.log2(hz / 10) for hz in (LOWEST_HZ, HIGHEST_HZ))
    for note, begin in enumerate(range(0, rows, _FRAMES_A_NOTE)):
        queue = queues[note % len(queues)]
        recording = queue[note // len(queues) % len(queue)]
        here = slice(begin, min(begin + _FRAMES_A_NOTE, rows))
        pitch = rng.uniform(max(low, recording.cents - REACH_CENTS), min(high, recording.cents + REACH_CENTS))
        if grid_cents is not None:
            pitch = A4_CENTS + grid_cents * round((pitch - A4_CENTS) / grid_cents)
        starts = rng.uniform(0, len(recording.loop), here.stop - begin)
        audio[here] = _normalise(_add_noise(_normalise(play(recording, pitch, starts)), rng))
        cents[here] = pitch
        labels[:, here] = [[first_note + note], [recording.take], [names.index(recording.instrument)]]
        if note % 64 == 0 or here.stop == rows:
            report(here.stop, rows)
    note_ids, takes, instruments = torch.from_numpy(labels)
    return Frames(torch.from_numpy(audio), torch.from_numpy(cents), note_ids, takes, instruments, names)


def _add_noise(audio: Array, rng: np.random.Generator) -> Array:
    snr_db = rng.uniform(*SNR_DB, size=(len(audio), 1))
    return audio + rng.standard_normal(audio.shape) * 10 ** (-snr_db / 20)


def _offset(progress: Progress | None, done: int, total: int) -> Progress:
    """Count a side's frames on from those of the sides before."""
    return lambda rows, _: progress(done + rows, total) if progress else None
