"""Residual dropout at a rate of the run's own (InstructGPT, appendix C.1: 0.2 in SFT).

GPT-2 and its like have it built in, as `resid_pdrop`. Llama and its like do not: there the outputs of the attention and MLP
blocks, just before they are added to the residual stream, are dropped by a hook, which is where GPT-2 has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F

from training.errors import StageError

BUILT_IN = ("resid_dropout", "resid_attn_dropout", "resid_mlp_dropout", "mlp.dropout")
"""Where the dropout of `resid_pdrop` sits, by the ends of the modules' names."""

HOOKED = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
"""Model types whose layers add the outputs of `self_attn` and `mlp` to the residual stream as they are.

Not Gemma 2 and 3 or OLMo 2: a norm comes after those blocks, so a hook on them would drop in another place.
"""


@contextmanager
def residual_dropout(model: torch.nn.Module, rate: float | None) -> Iterator[None]:
    """Within the block, train with this rate; None leaves what the model came with. Off in evaluation mode, as all dropout.

    The published configuration stays as it was. Raises StageError for a model where the place is not known.
    """
    if rate is None:
        yield
        return
    builtin = [m for name, m in model.named_modules() if name.endswith(BUILT_IN) and isinstance(m, torch.nn.Dropout)]
    before = [module.p for module in builtin]
    handles = [] if builtin else [block.register_forward_hook(_hook(rate)) for block in _blocks(model)]
    for module in builtin:
        module.p = rate
    try:
        yield
    finally:
        for module, p in zip(builtin, before, strict=True):
            module.p = p
        for handle in handles:
            handle.remove()


def _blocks(model: torch.nn.Module) -> list[torch.nn.Module]:
    kind = model.config.get_text_config().model_type  # type: ignore[operator, union-attr]
    layers = [m for m in model.modules() if hasattr(m, "self_attn") and hasattr(m, "mlp")]
    if kind not in HOOKED or not layers:
        raise StageError(
            f"residual_dropout: no known place for it in a model of type {kind}; "
            f"GPT-2's like and {', '.join(HOOKED)} have one"
        )
    return [layer.get_submodule(name) for layer in layers for name in ("self_attn", "mlp")]


def _hook(rate: float):
    def drop(module, inputs, output):
        """Attention gives a tuple whose first is what goes to the residual stream, an MLP that alone."""
        if isinstance(output, tuple):
            return (F.dropout(output[0], rate, module.training), *output[1:])
        return F.dropout(output, rate, module.training)

    return drop
