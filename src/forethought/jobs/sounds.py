"""One sound from a file, as mono samples from -1 to 1, of one rate and one length.

Plain WAV files are read by Python itself; what it does not know, by soundfile, if that is installed.
"""

import importlib
import wave
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from forethought.errors import DataError, MissingExtraError
from forethought.jobs.pictures import UnreadableError

SUFFIXES = frozenset({".aif", ".aiff", ".flac", ".mp3", ".ogg", ".wav"})
_WIDTHS = {1: "u1", 2: "<i2", 4: "<i4"}


@dataclass(frozen=True)
class Form:
    """How a file's sound is kept: samples a second, and how many samples of how many channels."""

    rate: int
    samples: int
    is_plain: bool


def form_of(path: str) -> Form:
    """Read a file's header.

    Raises:
        UnreadableError: it is no sound.
        MissingExtraError: Python alone cannot read it, and soundfile is not installed.
        OSError: the file cannot be opened.
    """
    try:
        with open(path, "rb") as file, wave.open(file) as sound:
            if sound.getsampwidth() in (1, 2, 3, 4):
                return Form(sound.getframerate(), sound.getnframes(), is_plain=True)
    except (wave.Error, EOFError):
        pass  # another kind of file, or of WAV
    with open(path, "rb") as file:
        start = file.read(4)
    if not start or (path.lower().endswith(".wav") and start not in (b"RIFF", b"RIFX", b"RF64")):
        raise UnreadableError("no WAV file" if start else "an empty file")
    soundfile = _soundfile(path)
    try:
        with open(path, "rb") as file:
            found = soundfile.info(file)
    except RuntimeError as err:
        raise UnreadableError(f"no sound that soundfile knows: {_said(err)}") from err
    return Form(int(found.samplerate), int(found.frames), is_plain=False)


def read_plain(path: str) -> NDArray[np.float32]:
    """Read a WAV file of whole numbers, channels averaged, as float32 (samples,) from -1 to 1.

    Raises:
        UnreadableError: it is none, or is cut off.
        OSError: the file cannot be opened.
    """
    try:
        with open(path, "rb") as file, wave.open(file) as sound:
            width, channels, count = sound.getsampwidth(), sound.getnchannels(), sound.getnframes()
            raw = sound.readframes(count)
    except (wave.Error, EOFError) as err:
        raise UnreadableError(_said(err)) from err
    if len(raw) != width * channels * count:
        raise UnreadableError(f"cut off: {len(raw):,} bytes of {width * channels * count:,}")
    if width == 3:
        bytes_of = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        wide = np.zeros((len(bytes_of), 4), np.uint8)
        wide[:, 1:] = bytes_of
        values = wide.view("<i4")[:, 0] / 2.0**31
    else:
        values = np.frombuffer(raw, _WIDTHS[width]).astype(np.float64)
        values = (values - 128) / 128 if width == 1 else values / 2.0 ** (8 * width - 1)
    made: NDArray[np.float32] = values.reshape(-1, channels).mean(1).astype(np.float32)
    return made


def read_any(path: str) -> NDArray[np.float32]:
    """Read any file that soundfile knows, channels averaged, as float32 (samples,) from -1 to 1.

    Raises:
        UnreadableError: it is none, or holds numbers that are not finite.
        MissingExtraError: soundfile is not installed.
        OSError: the file cannot be opened.
    """
    soundfile = _soundfile(path)
    try:
        with open(path, "rb") as file:
            values = soundfile.read(file, dtype="float32", always_2d=True)[0].mean(1, dtype=np.float64)
    except RuntimeError as err:
        raise UnreadableError(f"no sound that soundfile knows: {_said(err)}") from err
    if not np.isfinite(values).all():
        raise UnreadableError("samples that are not finite")
    made: NDArray[np.float32] = values.astype(np.float32)
    return made


@dataclass(frozen=True)
class Clip:
    """Gives sounds one length: what is too long is cut, what is too short ends in zeros; then the model's own way.

    Attributes:
        samples: How many.
        prepare: What turns samples into the model's input; None: they are the input.
    """

    samples: int
    prepare: Any = None

    def __call__(self, sound: NDArray[np.float32]) -> torch.Tensor:
        clip = np.zeros(self.samples, np.float32)
        clip[: len(sound)] = sound[: self.samples]
        made: torch.Tensor = torch.from_numpy(clip) if self.prepare is None else self.prepare(clip)
        return made


def _soundfile(path: str) -> Any:
    try:
        return importlib.import_module("soundfile")
    except ModuleNotFoundError as err:
        raise MissingExtraError(
            f"Cannot read '{path}': expected a WAV file of whole numbers, which Python reads itself, got another kind. "
            "pip install 'forethought[audio]'"
        ) from err


def one_rate(forms: dict[str, Form], wanted: int | None) -> int:
    """Say how many samples a second all sounds have.

    Raises:
        DataError: they differ, or the model expects another rate.
    """
    first, form = next(iter(forms.items()))
    rate = wanted or form.rate
    odd = next((path for path, form in forms.items() if form.rate != rate), None)
    if odd is None:
        return rate
    why = "as the model was trained for" if wanted else f"like '{first}'"
    raise DataError(
        f"Cannot use '{odd}': expected {rate:,} samples a second, {why}, got {forms[odd].rate:,}. "
        f"Resample the files first: ffmpeg -i IN.wav -ar {rate} OUT.wav"
    )


def one_length(forms: dict[str, Form], rate: int, seconds: float | None) -> int:
    """Say how many samples every clip gets.

    Raises:
        DataError: sounds differ in length, and nobody said how much of each to take.
    """
    if seconds is not None:
        return max(round(seconds * rate), 1)
    lengths = {form.samples for form in forms.values()}
    if len(lengths) == 1 and max(lengths):
        return max(lengths)
    raise DataError(
        f"Cannot join sounds into batches: expected one length, got {min(lengths) / rate:.2f} to "
        f"{max(lengths) / rate:.2f} seconds. Say how much of each to take, shorter ones end in silence: "
        f"--seconds {max(max(lengths) / rate, 0.01):.2f}"
    )


def _said(err: BaseException) -> str:
    return " ".join(str(err).split()) or type(err).__name__
