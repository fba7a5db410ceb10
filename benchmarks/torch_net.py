"""The seed CNN in PyTorch, layer by layer as luna_cls and Keras have it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from torch import nn


def seed_cnn(filters: Sequence[int], dense_units: int = 512, *, is_bare: bool = False) -> nn.Sequential:
    """Logits of cubes; a bare one has no normalisation at all."""

    def normalization(kind: Any, count: int) -> list[nn.Module]:
        return [] if is_bare else [kind(count, eps=1e-3, momentum=0.01)]  # Keras' defaults

    layers: list[nn.Module] = []
    for before, count in itertools.pairwise((1, *filters)):
        for channels in (before, count):
            layers += [nn.Conv3d(channels, count, 3, padding=1), nn.ReLU()]
            layers += normalization(nn.BatchNorm3d, count)
        layers += [nn.MaxPool3d(2), *normalization(nn.BatchNorm3d, count)]
    layers += [nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(filters[-1], dense_units), nn.ReLU()]
    layers += [*normalization(nn.BatchNorm1d, dense_units), nn.Dropout(0.4), nn.Linear(dense_units, 1)]
    return nn.Sequential(*layers)
