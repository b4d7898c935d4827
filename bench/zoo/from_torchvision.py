"""torchvision: every builder that it lists, but for the video models that take long clips only."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from zoo import Inputs, Specimen

_SIDE = 64
_SIDES = {"inception_v3": 299, "quantized_inception_v3": 299, "maxvit_t": 224, "vit_h_14": 28}
_SIDES |= dict.fromkeys(("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32"), 32)
_OPTIONS: dict[str, dict[str, Any]] = {
    **{name: {"image_size": 32} for name in ("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32")},
    "vit_h_14": {"image_size": 28},
    "googlenet": {"aux_logits": True, "init_weights": False},
    "inception_v3": {"aux_logits": True, "init_weights": False},
}
_COSTLY = {"s3d", "mvit_v1_b", "mvit_v2_s"}  # take 16 frames of 224 x 224 only: minutes a case


def specimens() -> Iterator[Specimen]:
    """List the builders for images, clips and pairs of images."""
    for name in models.list_models(module=models):
        make = functools.partial(models.get_model, name, weights=None, num_classes=7, **_OPTIONS.get(name, {}))
        yield Specimen(f"torchvision/{name}", make, _images(_SIDES.get(name, _SIDE)))
    for name in models.list_models(module=models.quantization):
        options = {"aux_logits": True} if "inception" in name or "googlenet" in name else {}
        make = functools.partial(models.get_model, name, weights=None, quantize=False, num_classes=7, **options)
        yield Specimen(f"torchvision/{name}", make, _images(_SIDES.get(name, _SIDE)))
    for name in models.list_models(module=models.segmentation):
        aux = {} if "lraspp" in name else {"aux_loss": True}
        make = functools.partial(models.get_model, name, weights=None, weights_backbone=None, num_classes=4, **aux)
        yield Specimen(f"torchvision/{name}", make, _images(_SIDE))
    for name in models.list_models(module=models.detection):
        side = 300 if name == "ssd300_vgg16" else 320 if name.startswith("ssdlite") else _SIDE
        yield Specimen(
            f"torchvision/{name}", functools.partial(_detector, name), _list_of_images(side), _with_targets(side, name)
        )
    for name in models.list_models(module=models.video):
        make = functools.partial(models.get_model, name, weights=None, num_classes=7)
        if name not in _COSTLY:
            yield Specimen(f"torchvision/{name}", make, _clips)
    for name in models.list_models(module=models.optical_flow):
        yield Specimen(f"torchvision/{name}", functools.partial(_flow, name), _pairs)


def _detector(name: str) -> nn.Module:
    """Build a detector that reports its best boxes however unsure it is: random weights are never sure."""
    options: dict[str, Any] = {"weights": None, "weights_backbone": None, "num_classes": 3}
    if not name.startswith("ssd"):
        options |= {"min_size": _SIDE, "max_size": _SIDE}
    if "rcnn" in name:
        options |= {"box_score_thresh": 0.0, "box_detections_per_img": 4, "rpn_post_nms_top_n_test": 16}
        options |= {"rpn_post_nms_top_n_train": 16, "rpn_pre_nms_top_n_train": 64, "rpn_pre_nms_top_n_test": 64}
    else:
        options |= {"score_thresh": 0.0, "detections_per_img": 4, "topk_candidates": 32}
    if name.startswith("keypoint"):
        options |= {"num_classes": 2, "num_keypoints": 3}
    return models.get_model(name, **options)


def _images(side: int) -> Callable[[int], Inputs]:
    return lambda batch: ((torch.randn(batch, 3, side, side),), {})


def _clips(batch: int) -> Inputs:
    return (torch.randn(batch, 3, 4, 32, 32),), {}


def _list_of_images(side: int) -> Callable[[int], Inputs]:
    return lambda batch: (([torch.rand(3, side, side) for _ in range(batch)],), {})


def _with_targets(side: int, name: str) -> Callable[[int], Inputs]:
    def target() -> dict[str, Tensor]:
        corners = torch.rand(2, 2) * side / 2
        boxes = torch.cat([corners, corners + side / 4 + torch.rand(2, 2) * side / 4], 1)
        made = {"boxes": boxes, "labels": torch.ones(2, dtype=torch.long)}
        if name.startswith("mask"):
            made["masks"] = torch.randint(0, 2, (2, side, side), dtype=torch.uint8)
        if name.startswith("keypoint"):
            made["keypoints"] = torch.cat([corners[:, None] + torch.rand(2, 3, 2) * side / 4, torch.ones(2, 3, 1)], 2)
        return made

    def feed(batch: int) -> Inputs:
        return ([torch.rand(3, side, side) for _ in range(batch)], [target() for _ in range(batch)]), {}

    return feed


def _flow(name: str) -> nn.Module:
    return _FewUpdates(models.get_model(name, weights=None))


class _FewUpdates(nn.Module):
    """A flow model that refines its answer twice only."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, first: Tensor, second: Tensor) -> list[Tensor]:
        """(B, 3, H, W) twice -> flows (B, 2, H, W)."""
        return self.model(first, second, num_flow_updates=2)


def _pairs(batch: int) -> Inputs:
    return (torch.rand(batch, 3, 128, 128), torch.rand(batch, 3, 128, 128)), {}
