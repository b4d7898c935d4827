"""Random inputs for any number of samples, one function a kind: words, images, sound, and several at once."""

from collections.abc import Callable

import torch

from zoo import Inputs

WORDS, LENGTH, SIDE = 64, 7, 32
IMAGE_TOKEN = 63  # stands in a text for one part of an image


def words(batch: int, length: int = LENGTH) -> Inputs:
    """Feed token numbers (B, L), no mask."""
    return (), {"input_ids": torch.randint(3, WORDS - 1, (batch, length))}


def long_words(batch: int) -> Inputs:
    """Feed longer texts."""
    return words(batch, 32)


def masked_words(batch: int) -> Inputs:
    """Feed texts of several lengths, padded, with their mask."""
    lengths = torch.randint(3, LENGTH + 1, (batch,))
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    return (), {"input_ids": words(batch)[1]["input_ids"] * mask, "attention_mask": mask}


def _targets(batch: int) -> dict[str, torch.Tensor]:
    return {"decoder_input_ids": torch.randint(3, WORDS - 1, (batch, 5))}


def pairs(batch: int) -> Inputs:
    """Feed a source text and a target text."""
    return (), masked_words(batch)[1] | _targets(batch)


def images(batch: int, side: int = SIDE) -> Inputs:
    """Feed images (B, 3, S, S)."""
    return (), {"pixel_values": torch.randn(batch, 3, side, side)}


def large_images(batch: int) -> Inputs:
    """Feed images that survive six halvings."""
    return images(batch, 64)


def waves(batch: int) -> Inputs:
    """Feed sound (B, T)."""
    return (), {"input_values": torch.randn(batch, 800)}


def spectra(batch: int) -> Inputs:
    """Feed spectrograms (B, bands, T)."""
    return (), {"input_features": torch.randn(batch, 16, 40)}


def turned_spectra(batch: int) -> Inputs:
    """Feed spectrograms (B, T, bands)."""
    return (), {"input_values": torch.randn(batch, 24, 16)}


def spectra_and_targets(batch: int) -> Inputs:
    """Feed a spectrogram and a target text."""
    return (), spectra(batch)[1] | _targets(batch)


def sounds_and_words(batch: int) -> Inputs:
    """Feed a spectrogram, as an image of one channel, and a text."""
    return (), masked_words(batch)[1] | {"input_features": torch.randn(batch, 1, 128, 8)}


def images_and_words(batch: int) -> Inputs:
    """Feed an image and a text."""
    return (), images(batch)[1] | masked_words(batch)[1]


def images_and_targets(batch: int) -> Inputs:
    """Feed an image and a target text."""
    return (), images(batch)[1] | _targets(batch)


def images_and_pairs(batch: int) -> Inputs:
    """Feed an image, a question and an answer."""
    return (), images_and_words(batch)[1] | _targets(batch)


def dialogues(batch: int) -> Inputs:
    """Feed an image, and a text in which 16 tokens stand for its parts."""
    text = words(batch)[1]["input_ids"]
    ids = torch.cat([text[:, :2], torch.full((batch, 16), IMAGE_TOKEN), text[:, 2:]], 1)
    return (), {"input_ids": ids, "attention_mask": torch.ones_like(ids), **images(batch)[1]}


def typed_dialogues(batch: int) -> Inputs:
    """Feed the same, with a type for every token."""
    inputs = dialogues(batch)[1]
    return (), inputs | {"token_type_ids": torch.zeros_like(inputs["input_ids"])}


Feed = Callable[[int], Inputs]
