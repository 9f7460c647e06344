"""What forward passes compute in: float32, or bfloat16 by autocast over weights that stay float32.

    precision.use("bf16", device)  # for the rest of this process
    @in_precision                  # around a function that runs a model's forward pass
    def loss_sum_at(model, …): …

Matrix products and attention then run in bfloat16; norms, softmax, log-probabilities, losses, scalar heads, gradients and AdamW stay
float32. Without `use` nothing is touched.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Literal, ParamSpec, TypeVar

import torch

Precision = Literal["float32", "bf16"]
Given = ParamSpec("Given")
Result = TypeVar("Result")

_chosen: Precision = "float32"
_device_type = "cpu"


def use(precision: Precision, device: torch.device) -> None:
    """Let forward passes of this process, on this device, run in this precision from now on."""
    global _chosen, _device_type
    _chosen, _device_type = precision, device.type


def in_precision(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """Run the function in the chosen precision. Weights are cast once per call; backward passes follow what was computed."""

    @wraps(function)
    def run(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        if _chosen == "float32":
            return function(*args, **kwargs)
        with torch.autocast(_device_type, torch.bfloat16):
            return function(*args, **kwargs)

    return run


def is_full() -> bool:
    """Whether forward passes run in float32."""
    return _chosen == "float32"


def tolerance(exact: float, rounded: float) -> float:
    """The first in float32, the second in bf16."""
    return exact if _chosen == "float32" else rounded
