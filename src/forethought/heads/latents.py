"""Latents: networks that place a sample on the line of classes, 0 for the first, K-1 for the last."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forethought.heads.layers import run_in_full


class ScaledLatent(nn.Module):
    """A network (B, D) -> (B, 1) whose output -1..1 spans the K classes.

    A bare Linear would have to travel K/2 classes from 0 before its first useful gradient; scaled, one
    learning rate suits 2 classes and 2,000.
    """

    def __init__(self, net: nn.Module, classes: int) -> None:
        super().__init__()
        self.net = net
        self.reach = (classes - 1) / 2

    def forward(self, features: Tensor) -> Tensor:
        """Return latents (B,) in class units, unbounded."""
        return self.reach + self.reach * run_in_full(self.net, features).squeeze(-1)


class ExpectedClass(nn.Module):
    """A classifier's expected class index, sum of k * p_k: never lowered by weight moving up."""

    def __init__(self, net: nn.Module, activation: str) -> None:
        super().__init__()
        self.net = net
        self.activation = activation

    def forward(self, features: Tensor) -> Tensor:
        """Return latents (B,) in [0, K-1]."""
        weights = class_weights(run_in_full(self.net, features), self.activation)
        index = torch.arange(weights.shape[-1], dtype=weights.dtype, device=weights.device)
        return (weights * index).sum(-1)


def log_weights(logits: Tensor, activation: str) -> Tensor:
    """Return unnormalised log weights (B, K) of the classes: softmax or normalised sigmoids of the logits."""
    return F.logsigmoid(logits) if activation == "sigmoid" else logits


def class_weights(logits: Tensor, activation: str) -> Tensor:
    """Return class weights (B, K) that sum to 1; for sigmoids, sigmoid / sum of sigmoids.

    Softmax of log-sigmoids is that same quotient, and stays finite where every sigmoid underflows to 0.
    """
    return log_weights(logits, activation).softmax(-1)
