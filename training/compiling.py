"""torch.compile for a model's layers, on request: one compilation serves all of them, for any batch and length.

Layer by layer, as FSDP2 shards them: what stands between the layers, and all that the stages do with hidden states, stays eager.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

Given = ParamSpec("Given")
Result = TypeVar("Result")

_is_used = False


def layers_of(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The layers that a model repeats, by what transformers says must not be split; none where it says nothing."""
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in kinds]


def compile_layers(model: torch.nn.Module, backend: str = "inductor") -> None:
    """Compile the layers in place, at their first pass. Results stay the same but for rounding; sampling stays eager."""
    global _is_used
    _is_used = True
    for layer in layers_of(model):
        layer.compile(dynamic=True, backend=backend)


def uncompiled(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """Let nothing run compiled in the function: a sampling loop's cache grows at each step, which would compile ever again."""

    @wraps(function)
    def run(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        if not _is_used:
            return function(*args, **kwargs)
        with torch.compiler.set_stance("force_eager"):
            return function(*args, **kwargs)

    return run
