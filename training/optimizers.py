"""AdamW as every stage uses it, and the schedules of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

from training import parallel
from training.errors import StageError


def cosine_schedule(step: int, steps: int, *, warmup_steps: int = 0, floor: float = 0.1) -> float:
    """Factor on the learning rate: linear from 0 to 1 over the warm-up, then cosine to `floor` at the last step."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - 1 - warmup_steps)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def adamw(
    model: torch.nn.Module, *, learning_rate: float, weight_decay: float, epsilon: float, fused: bool = False
) -> torch.optim.AdamW:
    """AdamW with β = (0.9, 0.95) (InstructGPT, appendix C); weight decay on matrices only, not on norms.

    `fused` reads and writes every weight once a step instead of a dozen times; results differ in rounding.
    """
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    given = [group for group in groups if group["params"]]
    return torch.optim.AdamW(given, lr=learning_rate, betas=(0.9, 0.95), eps=epsilon, fused=fused)


def apply_step(
    optimizer: torch.optim.Optimizer,
    model: torch.nn.Module,
    learning_rate: float,
    clip_norm: float,
    before_clear: Callable[[], None] | None = None,
) -> float:
    """Clip the gradients, step at this learning rate, clear the gradients. Returns the norm before clipping.

    `before_clear` is called while weights are new and gradients still there.
    """
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    if before_clear is not None:
        before_clear()
    optimizer.zero_grad(set_to_none=True)
    return parallel.number(norm)


def check_finite(place: str, figures: Mapping[str, float]) -> None:
    """Raise StageError that names what is not a finite number: such weights must never be saved or published.

    `place` ("step 3") begins the message.
    """
    lost = [name for name, value in figures.items() if not math.isfinite(value)]
    if lost:
        raise StageError(
            f"{place}: not a finite number: {', '.join(lost)}; nothing was published, and the last checkpoint, if any, still stands"
        )
