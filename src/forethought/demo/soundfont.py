"""Read a SoundFont 2 file: recordings, and where each preset plays them.

Written from the SoundFont Technical Specification 2.04 (E-mu Systems, 2006); the numbers in brackets below
are its sections. Only what a pitch needs is read: modulators, envelopes and filters are skipped. Nothing of
any SoundFont is shipped here: the demo reads the one that the installed `pretty_midi` brings.

    preset (a program of a bank) ─ zones ─> instrument ─ zones ─> sample header ─> 16-bit samples
"""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forethought.errors import DataError, MissingExtraError

PERCUSSION_BANK = 128  # [7.2] bank 128 holds drum kits by convention of General MIDI

# [7.10, 7.2, 7.6, 7.3, 7.5] All integers are little-endian and packed.
_SAMPLE_HEADER = np.dtype(
    [
        ("name", "S20"),
        ("start", "<u4"),
        ("end", "<u4"),
        ("loop_start", "<u4"),
        ("loop_end", "<u4"),
        ("rate", "<u4"),
        ("original_pitch", "u1"),
        ("correction", "i1"),
        ("link", "<u2"),
        ("kind", "<u2"),
    ]
)
_PRESET_HEADER = np.dtype(
    [("name", "S20"), ("program", "<u2"), ("bank", "<u2"), ("bag", "<u2"), ("unused", "<u4", (3,))]
)
_INSTRUMENT_HEADER = np.dtype([("name", "S20"), ("bag", "<u2")])
_BAG = np.dtype([("generator", "<u2"), ("modulator", "<u2")])
_GENERATOR = np.dtype([("operator", "<u2"), ("amount", "<u2")])

# [8.1.2] The generators that decide which samples sound at which pitch.
_INSTRUMENT, _KEY_RANGE, _COARSE_TUNE, _FINE_TUNE = 41, 43, 51, 52
_SAMPLE_ID, _SAMPLE_MODES, _ROOT_KEY = 53, 54, 58
_LOOP_START, _LOOP_END, _LOOP_START_COARSE, _LOOP_END_COARSE = 2, 3, 45, 50
_KIND_LEFT_OR_RIGHT = 2 | 4  # [7.10] stereo halves name each other in `link`
_KIND_ROM = 0x8000


@dataclass(frozen=True)
class Sample:
    """One recording, from `start` to `end` in the file's samples; its loop is counted from the same origin.

    `original_pitch` is a MIDI key; 255 means unpitched. `correction_cents` is what a player adds to bring the
    recording to that key, so the recording itself sounds at `original_pitch - correction_cents / 100`.
    `partner` is the index of the other half of a stereo recording, or None.
    """

    name: str
    start: int
    end: int
    loop_start: int
    loop_end: int
    sample_rate_hz: int
    original_pitch: int
    correction_cents: int
    partner: int | None


@dataclass(frozen=True)
class Zone:
    """Where a preset plays one sample: keys `low` to `high`, both included.

    `root_key` is the key at which the recording plays unresampled but for `tune_cents` (zone tunings and the
    sample's own correction together), so by this zone the recording sounds at MIDI pitch `root_key -
    tune_cents / 100`. `loop_start` and `loop_end` are the sample's own moved by the zone's offsets; equal
    when the zone does not loop.
    """

    sample: int
    low: int
    high: int
    root_key: int
    tune_cents: int
    loop_start: int
    loop_end: int


@dataclass(frozen=True)
class Preset:
    """A program of a bank, its zones joined with those of its instruments."""

    name: str
    bank: int
    program: int
    zones: tuple[Zone, ...]


@dataclass(frozen=True)
class SoundFont:
    """Presets in the order of bank and program, sample headers, and all samples as (n,) int16."""

    presets: tuple[Preset, ...]
    samples: tuple[Sample, ...]
    pcm: NDArray[np.int16]


def find_soundfont() -> Path:
    """Find the SoundFont beside the installed `pretty_midi`, without importing it.

    Raises:
        MissingExtraError: pretty_midi is not installed.
    """
    spec = importlib.util.find_spec("pretty_midi")
    if spec is None or spec.origin is None:
        raise MissingExtraError(
            "Cannot find recordings for the demo: expected pretty_midi, which ships a SoundFont, "
            "got no such package. pip install 'forethought[demo]'"
        )
    return Path(spec.origin).with_name("TimGM6mb.sf2")


def read_soundfont(path: str | Path) -> SoundFont:
    """Read presets, zones, sample headers and samples of a SoundFont 2 file.

    Raises:
        DataError: the file is missing, cut short, or its tables point outside each other.
    """
    try:
        blob = Path(path).read_bytes()
    except OSError as err:
        raise _unreadable(path, "a file", err.strerror or "an error") from err
    try:
        return _parse(blob)
    except IndexError as err:
        raise _unreadable(path, "a whole SoundFont 2 file", "a table that points outside another") from err
    except ValueError as err:
        raise _unreadable(path, "a whole SoundFont 2 file", str(err)) from err


def _unreadable(path: str | Path, expected: str, got: str) -> DataError:
    return DataError(
        f"Cannot read SoundFont {str(path)!r}: expected {expected}, got {got}. "
        "pip install --force-reinstall pretty_midi"
    )


def _parse(blob: bytes) -> SoundFont:
    chunks = dict(_chunks(blob))
    pcm = _table(chunks, "smpl", np.dtype("<i2"))
    samples = tuple(_samples(_table(chunks, "shdr", _SAMPLE_HEADER), len(pcm)))
    presets = _presets(chunks, samples)
    return SoundFont(tuple(sorted(presets, key=lambda p: (p.bank, p.program))), samples, pcm)


def _chunks(blob: bytes) -> Iterator[tuple[str, memoryview]]:
    """Walk RIFF > LIST > chunk [3]; yields each inner chunk's name and bytes."""
    outer = memoryview(blob)
    if bytes(outer[:4]) != b"RIFF" or bytes(outer[8:12]) != b"sfbk":
        raise ValueError(f"a file that starts with {bytes(outer[:12])!r}")
    for name, body in _siblings(outer[12:]):
        if name == "LIST":
            yield from _siblings(body[4:])


def _siblings(run: memoryview) -> Iterator[tuple[str, memoryview]]:
    while len(run) >= 8:
        name, size = bytes(run[:4]).decode("latin-1"), int.from_bytes(run[4:8], "little")
        if 8 + size > len(run):
            raise ValueError(f"chunk {name!r} of {size} bytes where {len(run) - 8} are left")
        yield name, run[8 : 8 + size]
        run = run[8 + size + size % 2 :]  # [3.1] chunks start at even offsets


def _table(chunks: dict[str, memoryview], name: str, row: np.dtype[Any]) -> NDArray[Any]:
    if name not in chunks:
        raise ValueError(f"no chunk {name!r}")
    return np.frombuffer(chunks[name], dtype=row)


def _samples(headers: NDArray[np.void], length: int) -> Iterator[Sample]:
    for index, header in enumerate(headers[:-1]):  # [7.10] the last record only ends the table
        start, end, rate = (int(header[key]) for key in ("start", "end", "rate"))
        rom = bool(header["kind"] & _KIND_ROM)
        if not rom and not (start <= end <= length and rate > 0):
            raise ValueError(f"sample {index} from {start} to {end} of {length} at {rate} Hz")
        stereo = bool(header["kind"] & _KIND_LEFT_OR_RIGHT)
        yield Sample(
            name=_text(header["name"]),
            start=start,
            end=start if rom else end,  # a ROM sample lives in a synthesiser, not in this file
            loop_start=int(header["loop_start"]),
            loop_end=int(header["loop_end"]),
            sample_rate_hz=rate,
            original_pitch=int(header["original_pitch"]),
            correction_cents=int(header["correction"]),
            partner=int(header["link"]) if stereo else None,
        )


def _presets(chunks: dict[str, memoryview], samples: tuple[Sample, ...]) -> Iterator[Preset]:
    instruments = _zone_lists(chunks, "inst", _INSTRUMENT_HEADER, "ibag", "igen", _SAMPLE_ID)
    presets = _zone_lists(chunks, "phdr", _PRESET_HEADER, "pbag", "pgen", _INSTRUMENT)
    for header, outer_zones in presets:
        zones = [
            zone
            for outer in outer_zones
            for inner in instruments[outer[_INSTRUMENT]][1]
            if (zone := _join(outer, inner, samples)).low <= zone.high
        ]
        yield Preset(_text(header["name"]), int(header["bank"]), int(header["program"]), tuple(zones))


def _zone_lists(
    chunks: dict[str, memoryview], head: str, row: np.dtype[np.void], bag: str, generators: str, target: int
) -> list[tuple[np.void, list[dict[int, int]]]]:
    """Give each header its zones as {operator: amount}; a zone names its `target` or it is not one."""
    headers, bags = _table(chunks, head, row), _table(chunks, bag, _BAG)["generator"].astype(int)
    settings = [(int(g["operator"]), int(g["amount"])) for g in _table(chunks, generators, _GENERATOR)]
    if bags.max(initial=0) > len(settings):
        raise IndexError
    lists = []
    for header, following in pairwise(headers):
        zones = [dict(settings[bags[i] : bags[i + 1]]) for i in range(int(header["bag"]), int(following["bag"]))]
        # [7.3, 7.7] A first zone without a target is global: its settings are the defaults of the others.
        default = zones[0] if zones and target not in zones[0] else {}
        lists.append((header, [default | zone for zone in zones if target in zone]))
    return lists


def _join(outer: dict[int, int], inner: dict[int, int], samples: tuple[Sample, ...]) -> Zone:
    """Join a preset's zone with its instrument's: key ranges intersect, tunings add [9.4]."""
    index = inner[_SAMPLE_ID]
    sample = samples[index]
    ranges = [zone.get(_KEY_RANGE, 127 << 8) for zone in (outer, inner)]  # low key in the low byte [8.1.2]
    tunes = [100 * _signed(z.get(_COARSE_TUNE, 0)) + _signed(z.get(_FINE_TUNE, 0)) for z in (outer, inner)]
    root = _signed(inner.get(_ROOT_KEY, 0xFFFF))
    loop_start = sample.loop_start + _offset(inner, _LOOP_START, _LOOP_START_COARSE)
    loop_end = sample.loop_end + _offset(inner, _LOOP_END, _LOOP_END_COARSE)
    return Zone(
        sample=index,
        low=max(amount & 0xFF for amount in ranges),
        high=min(amount >> 8 for amount in ranges),
        root_key=sample.original_pitch if root < 0 else root,
        tune_cents=sum(tunes) + sample.correction_cents,
        loop_start=loop_start,
        loop_end=loop_end if inner.get(_SAMPLE_MODES, 0) & 1 else loop_start,
    )


def _offset(zone: dict[int, int], fine: int, coarse: int) -> int:
    return _signed(zone.get(fine, 0)) + 32768 * _signed(zone.get(coarse, 0))


def _signed(amount: int) -> int:
    return amount - 0x10000 if amount & 0x8000 else amount


def _text(name: np.bytes_) -> str:
    return bytes(name).split(b"\0")[0].decode("latin-1").strip()
