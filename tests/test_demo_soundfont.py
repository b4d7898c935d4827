"""The SoundFont reader: a small file made here byte by byte, hostile ones, and the one the demo plays."""

import importlib.util
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forethought.demo.soundfont import PERCUSSION_BANK, find_soundfont, read_soundfont
from forethought.errors import DataError, MissingExtraError

PCM = np.arange(-50, 50, dtype="<i2")


def chunk(name, body):
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def table(layout, *rows):
    return b"".join(struct.pack("<" + layout, *row) for row in rows)


def generators(*pairs):
    return table("HH", *((operator, amount & 0xFFFF) for operator, amount in pairs))


def small_font(**replaced):
    """Two presets over one instrument; its second zone says everything a zone can say."""
    parts = {
        "smpl": PCM.tobytes(),
        "phdr": table(
            "20sHHH3I",
            (b"Kit", 0, 128, 0, 0, 0, 0),
            (b"Flute", 73, 0, 1, 0, 0, 0),
            (b"EOP", 0, 0, 3, 0, 0, 0),
        ),
        "pbag": table("HH", (0, 0), (1, 0), (3, 0), (5, 0)),
        # The kit plays the instrument as it is; the flute has a global zone (tune up 10) and keys 50 to 100.
        "pgen": generators((41, 0), (52, 10), (43, 50 | 100 << 8), (51, -1), (41, 0), (0, 0)),
        "inst": table("20sH", (b"Tube", 0), (b"EOI", 3)),
        "ibag": table("HH", (0, 0), (1, 0), (4, 0), (12, 0)),
        "igen": generators(
            *[(52, -3)],  # global: tune down 3 cents
            *[(43, 0 | 59 << 8), (54, 1), (53, 0)],
            *[(43, 60 | 127 << 8), (58, 67), (51, 2), (52, 7), (2, 5), (3, -5), (54, 1), (53, 1)],
            *[(0, 0)],
        ),
        "shdr": table(
            "20sIIIIIBbHH",
            (b"Low L", 0, 40, 10, 30, 22050, 60, -9, 1, 4),
            (b"High\0junk", 40, 100, 50, 90, 44100, 255, 4, 0, 1),
            (b"EOS", 0, 0, 0, 0, 0, 0, 0, 0, 0),
        ),
    } | replaced
    inner = {name: chunk(name.encode(), body) for name, body in parts.items() if body is not None}
    samples = chunk(b"LIST", b"sdta" + inner.pop("smpl", b""))
    articulation = chunk(b"LIST", b"pdta" + b"".join(inner.values()))
    return chunk(b"RIFF", b"sfbk" + chunk(b"LIST", b"INFO" + chunk(b"INAM", b"abc")) + samples + articulation)


@pytest.fixture
def read(tmp_path):
    def read_bytes(blob):
        path = tmp_path / "small.sf2"
        path.write_bytes(blob)
        return read_soundfont(path)

    return read_bytes


def test_read_soundfont_reads_headers_and_samples(read):
    """Every field that a pitch needs comes back as written; names end at their first zero byte."""
    font = read(small_font())
    assert (font.pcm == PCM).all()
    low, high = font.samples
    assert (low.name, low.start, low.end, low.loop_start, low.loop_end) == ("Low L", 0, 40, 10, 30)
    assert (low.sample_rate_hz, low.original_pitch, low.correction_cents, low.partner) == (22050, 60, -9, 1)
    assert (high.name, high.partner) == ("High", None)


def test_read_soundfont_joins_zones_of_preset_and_instrument(read):
    """Ranges intersect, tunings add, a global zone gives defaults, the zone's root key wins."""
    font = read(small_font())
    flute, kit = font.presets
    assert (flute.name, flute.bank, flute.program) == ("Flute", 0, 73)
    assert (kit.name, kit.bank) == ("Kit", PERCUSSION_BANK)
    first, second = flute.zones
    assert (first.sample, first.low, first.high, first.root_key) == (0, 50, 59, 60)
    assert first.tune_cents == -100 + 10 - 3 - 9  # preset, its global zone, the instrument's global zone, sample
    assert (second.sample, second.low, second.high, second.root_key) == (1, 60, 100, 67)
    assert second.tune_cents == -100 + 10 + 200 + 7 + 4
    assert (second.loop_start, second.loop_end) == (55, 85)
    assert [zone.high for zone in kit.zones] == [59, 127]


def test_read_soundfont_gives_an_empty_loop_where_the_zone_does_not_loop(read):
    """A zone without sample mode 1 has no loop, whatever the sample header says."""
    font = read(small_font(igen=generators((52, -3), *[(43, 59 << 8), (54, 0), (53, 0)], *[(53, 1)] * 9)))
    zone = font.presets[1].zones[0]
    assert zone.loop_start == zone.loop_end


@pytest.mark.parametrize(
    ("blob", "got"),
    [
        (b"", "starts with"),
        (b"RIFX" + small_font()[4:], "starts with"),
        (small_font(shdr=None), "no chunk 'shdr'"),
        (small_font(smpl=None), "no chunk 'smpl'"),
        (small_font(smpl=PCM[:50].tobytes()), "sample 1 from 40 to 100 of 50"),
        (small_font(pbag=table("HH", (0, 0), (1, 0), (3, 0), (500, 0))), "points outside"),
        (small_font(pgen=generators((41, 9), *[(41, 0)] * 5)), "points outside"),
        (small_font(inst=table("20sH", (b"Tube", 0), (b"EOI", 77))), "points outside"),
        (small_font(phdr=b"12345"), "multiple"),
    ],
)
def test_read_soundfont_names_what_is_wrong(read, blob, got):
    """A file that is no SoundFont, lacks a part, or disagrees with itself is refused with reason and fix."""
    with pytest.raises(DataError, match=got) as refusal:
        read(blob)
    assert "expected a whole SoundFont 2 file" in str(refusal.value)
    assert "pip install" in str(refusal.value)


def test_read_soundfont_refuses_every_truncation(read):
    """A download cut short anywhere is an error of ours."""
    blob = small_font()
    for length in range(len(blob)):
        with pytest.raises(DataError):
            read(blob[:length])


@given(st.lists(st.tuples(st.integers(0, len(small_font()) - 1), st.integers(0, 255)), min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_read_soundfont_survives_any_damage(tmp_path_factory, damage):
    """Wrong bytes give an error of ours or some font, never another exception."""
    blob = bytearray(small_font())
    for place, value in damage:
        blob[place] = value
    path = tmp_path_factory.mktemp("damaged") / "small.sf2"
    path.write_bytes(blob)
    try:
        font = read_soundfont(path)
    except DataError:
        return
    assert all(sample.end <= len(font.pcm) for sample in font.samples)


def test_read_soundfont_names_a_missing_file(tmp_path):
    """A path without a file is an error of ours."""
    with pytest.raises(DataError, match=r"nowhere\.sf2"):
        read_soundfont(tmp_path / "nowhere.sf2")


def test_find_soundfont_names_the_extra_when_pretty_midi_is_missing(monkeypatch):
    """Without pretty_midi the error says which command installs it."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'forethought\[demo\]'"):
        find_soundfont()


@pytest.mark.skipif(importlib.util.find_spec("pretty_midi") is None, reason="needs the demo extra")
def test_read_soundfont_reads_the_demos_font():
    """The font of pretty_midi has the 128 General MIDI programs, and every melodic zone names a sample."""
    font = read_soundfont(find_soundfont())
    melodic = [preset for preset in font.presets if preset.bank != PERCUSSION_BANK]
    assert [preset.program for preset in melodic] == list(range(128))
    assert "Violin" in melodic[40].name
    assert "Flute" in melodic[73].name
    assert all(zone.sample < len(font.samples) for preset in melodic for zone in preset.zones)
