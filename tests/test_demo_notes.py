"""The demo's notes: true pitch, no aliasing, no leak between the sides, and CREPE's own readings."""

import importlib.util
import sys
from collections import defaultdict

import numpy as np
import pytest
import torch

from forethought.demo import crepe, notes
from forethought.demo.recordings import MAX_APERIODICITY, Recording, choose_recordings, measure_pitch
from forethought.demo.soundfont import Preset, Sample, SoundFont, Zone, find_soundfont, read_soundfont
from forethought.errors import DataError, MissingExtraError

needs_font = pytest.mark.skipif(importlib.util.find_spec("pretty_midi") is None, reason="needs the demo extra")
needs_crepe = pytest.mark.skipif(importlib.util.find_spec("torchcrepe") is None, reason="needs the demo extra")

SECONDS = np.arange(notes.FRAME) / notes.SAMPLE_RATE_HZ


def make_recording(loop, cycles, rate=44_100):
    return Recording(0, "made", 0, "made", 0, loop, cycles, rate, 0.0, 0.0)


def residual(audio, hz, harmonics):
    """Share of amplitude that no mixture of the given harmonics of `hz` explains."""
    angles = 2 * np.pi * hz * SECONDS[:, None] * np.asarray(harmonics)
    basis = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    weights, *_ = np.linalg.lstsq(basis, audio, rcond=None)
    return np.linalg.norm(audio - basis @ weights) / np.linalg.norm(audio)


def font_of(*loops, root_keys, rates):
    """A font of one program for each loop; the recordings are nothing but their loops."""
    pcm = np.concatenate([np.round(loop * 20_000) for loop in loops]).astype(np.int16)
    ends = np.cumsum([len(loop) for loop in loops])
    samples = tuple(
        Sample(f"Made {i}", int(e - len(x)), int(e), int(e - len(x)), int(e), rate, 60, 0, None)
        for i, (x, e, rate) in enumerate(zip(loops, ends, rates, strict=True))
    )
    presets = tuple(
        Preset(f"Program {i}", 0, i, (Zone(i, 0, 127, root_keys[i], 0, s.loop_start, s.loop_end),))
        for i, s in enumerate(samples)
    )
    return SoundFont(presets, samples, pcm)


def tone(length, cycles, strengths):
    """A loop of `cycles` periods, harmonic k as strong as strengths[k - 1]."""
    angles = 2 * np.pi * cycles * np.arange(length) / length
    return sum(s * np.cos(k * angles + k) for k, s in enumerate(strengths, start=1)) / sum(strengths)


@pytest.fixture(scope="module")
def splits():
    return notes.make_splits("tiny", seed=0)


def sides_of(splits):
    return [splits.train, splits.validation, splits.test, splits.unseen]


@pytest.mark.parametrize("shift_cents", [-600.0, -33.3, 0.0, 217.7, 600.0])
@pytest.mark.parametrize(("length", "cycles", "rate"), [(100, 1, 44_100), (4_001, 83, 22_050), (39, 1, 12_000)])
def test_play_hits_the_target_within_a_tenth_of_a_cent(length, cycles, rate, shift_cents):
    """A sine comes out at the target: a sine 0.1 cent off would drift from it in phase over the frame."""
    recording = make_recording(tone(length, cycles, [1.0]), cycles, rate)
    cents = recording.cents + shift_cents
    hz = 10 * 2 ** (cents / 1200)
    (audio,) = notes.play(recording, cents, np.array([7.3]))
    halves = [audio[:512], audio[512:]]
    phases = [
        np.angle(np.linalg.lstsq(np.stack([np.cos(a), -np.sin(a)], 1), half, rcond=None)[0] @ [1, 1j])
        for half, a in zip(halves, np.split(2 * np.pi * hz * SECONDS, 2), strict=True)
    ]
    drift_hz = (phases[1] - phases[0]) / (2 * np.pi * 0.032)
    assert abs(1200 * np.log2(1 + drift_hz / hz)) < 0.1


@pytest.mark.parametrize("shift_cents", [-600.0, 0.0, 431.0, 600.0])
def test_play_does_not_alias(shift_cents):
    """Of a pulse train with harmonics to 22 kHz those below 8 kHz are heard, and nothing between them."""
    recording = make_recording(tone(101, 1, np.ones(50)), 1)
    cents = recording.cents + shift_cents
    hz = 10 * 2 ** (cents / 1200)
    (audio,) = notes.play(recording, cents, np.array([0.0]))
    assert residual(audio, hz, range(1, int(8000 / hz) + 1)) < 1e-4


@pytest.mark.parametrize("hz", [70.3, 221.7, 659.1, 1800.9])
def test_measure_pitch_is_within_a_cent(hz):
    """The estimate finds a fundamental whose period is no whole number of samples, and not its octaves."""
    rate = 44_100
    times = np.arange(int(0.064 * rate) + int(rate / 28) + 2) / rate
    wave = sum(np.cos(2 * np.pi * k * hz * times + k) / k for k in range(1, 9))
    measured, aperiodicity = measure_pitch(wave[None], rate)
    assert abs(1200 * np.log2(measured[0] / hz)) < 1
    assert aperiodicity[0] < MAX_APERIODICITY / 2


def test_choose_recordings_takes_the_pitch_from_the_loop():
    """Three cycles in 601 samples are 3 r / 601 exactly, though the root key says 4 cents more."""
    font = font_of(tone(601, 3, [1, 0.5, 0.3]), root_keys=[57], rates=[44_100])
    (chosen,) = choose_recordings(font)
    assert chosen.cycles == 3
    assert chosen.hz == 3 * 44_100 / 601
    assert abs(chosen.measured_cents - chosen.cents) < 0.1
    assert 1 < abs(chosen.declared_cents - chosen.cents) < 5


@pytest.mark.parametrize(
    ("loop", "root_key"),
    [
        pytest.param(tone(200, 1, [1, 0.5, 0.3]), 69, id="root an octave too high"),
        pytest.param(tone(200, 1, [0.1, 1, 0, 0.5]), 57, id="all but an octave higher"),
        pytest.param(np.random.default_rng(0).uniform(-1, 1, 9000), 57, id="noise"),
        pytest.param(np.sin(0.0314 * np.arange(9000) + 3 * np.sin(0.0014 * np.arange(9000))), 57, id="vibrato"),
        pytest.param(np.zeros(200), 57, id="silence"),
    ],
)
def test_choose_recordings_leaves_out_what_has_no_one_pitch(loop, root_key):
    """Where the two witnesses disagree, or the pitch moves along the loop, there is no exact truth."""
    assert choose_recordings(font_of(loop, root_keys=[root_key], rates=[44_100])) == ()


def test_choose_recordings_knows_one_sound_stored_twice():
    """The same sound at half the rate is the same take and instrument; another at that pitch is neither."""
    sound, half = tone(200, 1, [1, 0.6, 0.3]), tone(100, 1, [1, 0.6, 0.3])
    other = tone(200, 1, [1, 0.1, 0.6])
    font = font_of(sound, half, other, root_keys=[57, 57, 57], rates=[44_100, 22_050, 44_100])
    takes = [recording.take for recording in choose_recordings(font)]
    assert takes[0] == takes[1] != takes[2]


@needs_font
def test_choose_recordings_finds_most_of_the_demos_font():
    """Loop and estimate agree to a fraction of a cent on most: truth does not rest on the estimate."""
    chosen = choose_recordings(read_soundfont(find_soundfont()))
    assert len(chosen) > 200
    gaps = np.array([recording.cents - recording.measured_cents for recording in chosen])
    assert np.median(np.abs(gaps)) < 0.01
    assert np.abs(gaps).max() <= 5


@needs_font
def test_make_splits_shares_nothing_between_sides(splits):
    """No note and no take stands on two sides, and nothing of an unseen instrument on a seen side."""
    sides = sides_of(splits)
    for field in ("note", "take"):
        values = [set(getattr(side, field).tolist()) for side in sides]
        assert sum(map(len, values)) == len(set.union(*values)), field
    seen = set.union(*(set(side.instrument.tolist()) for side in sides[:3]))
    assert not seen & set(splits.unseen.instrument.tolist())


@needs_font
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_deal_parts_no_preset_and_no_sample(seed):
    """Checked on the file, around our own grouping: no preset has recordings both seen and unseen."""
    font = read_soundfont(find_soundfont())
    sides = notes.deal(notes.library(), seed)
    place = {recording.sample: side == 3 for side, recordings in enumerate(sides) for recording in recordings}
    assert len(place) == sum(map(len, sides))
    programs = {recording.program for side in sides for recording in side}
    for preset in font.presets:
        if preset.bank == 0 and preset.program in programs:
            assert len({place[zone.sample] for zone in preset.zones if zone.sample in place}) <= 1, preset.name
    instruments = [{recording.instrument for recording in side} for side in sides]
    assert instruments[0] == instruments[1] == instruments[2]
    assert len(instruments[0]) >= 24
    assert len(instruments[3]) == 8


@needs_font
def test_deal_keeps_equal_loops_on_one_side():
    """No two sides hold a loop of equal bytes, whatever its name."""
    sides_with = defaultdict(set)
    for side, recordings in enumerate(notes.deal(notes.library(), 0)):
        for recording in recordings:
            sides_with[recording.loop.tobytes()].add(side)
    assert all(len(sides) == 1 for sides in sides_with.values())


@needs_font
def test_make_splits_follows_the_seed(splits):
    """Equal seeds give equal bytes, another seed another deal."""
    again, other = notes.make_splits("tiny", seed=0), notes.make_splits("tiny", seed=1)
    for one, two, three in zip(sides_of(splits), sides_of(again), sides_of(other), strict=True):
        assert torch.equal(one.audio, two.audio)
        assert torch.equal(one.cents, two.cents)
        assert torch.equal(one.take, two.take)
        assert not torch.equal(one.cents, three.cents)


@needs_font
def test_make_splits_gives_frames_as_crepe_wants_them(splits):
    """Rows have mean 0 and deviation 1, pitches lie among CREPE's bins, frames of a note share its labels."""
    for side, rows in zip(sides_of(splits), notes.SIZES["tiny"], strict=True):
        assert side.audio.shape == (rows, 1024)
        assert side.audio.dtype == side.cents.dtype == torch.float32
        torch.testing.assert_close(side.audio.mean(1), torch.zeros(rows), atol=1e-5, rtol=0)
        torch.testing.assert_close(side.audio.std(1), torch.ones(rows), atol=1e-4, rtol=0)
        assert crepe.CENTS[0] < side.cents.min()
        assert side.cents.max() < crepe.CENTS[-1]
        for note in side.note.unique():
            rows_of = side.note == note
            assert len(side.cents[rows_of].unique()) == len(side.take[rows_of].unique()) == 1


@needs_font
def test_make_splits_pitch_is_between_the_bins(splits):
    """Targets are continuous: they fall anywhere between CREPE's classes."""
    offsets = (splits.train.cents - crepe.CENTS[0]) % crepe.CENTS_PER_BIN
    assert np.histogram(offsets.numpy(), bins=4, range=(0, 20))[0].min() > 40


@needs_font
def test_make_splits_reports_progress():
    """Progress rises to the number of frames."""
    calls = []
    notes.make_splits("tiny", progress=lambda done, total: calls.append((done, total)))
    assert calls == sorted(calls)
    assert calls[-1] == (640, 640)


def test_make_splits_names_an_unknown_size():
    """The error lists the sizes."""
    with pytest.raises(DataError, match="'tiny', 'default', 'full', got 'huge'"):
        notes.make_splits("huge")


@needs_font
def test_glissando_rises_evenly_over_one_test_take(splits):
    """One take of the test side, a cent a frame."""
    sweep = notes.glissando(seed=0)
    assert len(sweep) == 601
    torch.testing.assert_close(sweep.cents.diff(), torch.ones(600), atol=2e-3, rtol=0)
    (take,) = sweep.take.unique().tolist()
    assert take in {recording.take for recording in notes.deal(notes.library(), 0)[2]}


def test_argmax_cents_takes_the_strongest_bin():
    """A single peak is read as its bin's pitch, in the outputs' own type."""
    outputs = torch.eye(360)
    torch.testing.assert_close(crepe.argmax_cents(outputs), crepe.CENTS.float())


def test_weighted_cents_averages_nine_bins_and_no_more():
    """By hand: weights near the peak count, at the edge of the scale too; those five bins off do not."""
    outputs = torch.zeros(2, 360, dtype=torch.float64)
    outputs[0, 100], outputs[0, 104], outputs[0, 105] = 0.6, 0.2, 0.5
    outputs[1, 359], outputs[1, 358] = 0.5, 0.25
    expected = torch.stack([crepe.CENTS[100] + 20, crepe.CENTS[359] - 20 / 3])
    torch.testing.assert_close(crepe.weighted_cents(outputs), expected)


def test_cents_to_hz_undoes_hz_to_cents():
    """There and back; 10 Hz is 0 cents."""
    hz = torch.tensor([10.0, 440.0, 1975.5], dtype=torch.float64)
    assert crepe.hz_to_cents(hz)[0] == 0
    torch.testing.assert_close(crepe.cents_to_hz(crepe.hz_to_cents(hz)), hz)


@needs_crepe
@needs_font
def test_load_crepe_hears_the_notes(splits):
    """Trained weights and true pitch agree: half of all frames within 5 cents, nine in ten within 25."""
    model = crepe.load_crepe("tiny")
    assert not model.training
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        "classifier.weight",
        "classifier.bias",
    }
    with torch.no_grad():
        errors = (crepe.weighted_cents(model(splits.train.audio)) - splits.train.cents).abs()
    assert errors.median() < 5
    assert (errors < 25).float().mean() > 0.9


def test_load_crepe_names_the_extra_when_torchcrepe_is_missing(monkeypatch):
    """Without torchcrepe the error says which command installs it."""
    monkeypatch.setitem(sys.modules, "torchcrepe", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'forethought\[demo\]'"):
        crepe.load_crepe()


def test_load_crepe_names_an_unknown_capacity():
    """The error lists the capacities."""
    with pytest.raises(DataError, match="'tiny' or 'full', got 'medium'"):
        crepe.load_crepe("medium")
