"""Models that people use, with random weights and small inputs: what `ft.split` is tried on.

from zoo import specimens
specimen = specimens("torchvision")["torchvision/resnet18"]
model, (args, kwargs) = specimen.make(), specimen.feed(2)
"""

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Specimen:
    """One model and how to feed it.

    Attributes:
        name: Unique, `family/model`.
        make: Builds the model, with random weights.
        feed: Number of samples -> the model's arguments, random.
        feed_training: The same for training mode, where the model asks for more (targets).
    """

    name: str
    make: Callable[[], nn.Module]
    feed: Callable[[int], Inputs]
    feed_training: Callable[[int], Inputs] | None = None

    def feed_in(self, mode: str, batch: int) -> Inputs:
        """Feed the model in one mode."""
        return (self.feed_training or self.feed)(batch) if mode == "train" else self.feed(batch)


_FAMILIES = ("torchvision", "timm", "transformers")


@functools.cache
def specimens(*families: str) -> dict[str, Specimen]:
    """List the models of these families, or of all, by name, without building any."""
    modules = [importlib.import_module(f"zoo.from_{family}") for family in families or _FAMILIES]
    return {specimen.name: specimen for module in modules for specimen in module.specimens()}
