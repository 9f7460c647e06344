"""PPO-ptx: γ times the gradient of the language-model loss on pretraining text, added to PPO's (InstructGPT, eq. 2 and C.4).

γ means nothing without the reductions, so they are named. PPO's policy loss is a mean over the kept response tokens of the
minibatch. The loss on text is, as the config says, a mean over the target tokens of the minibatch's packed rows
("token_mean"), or a sum over each row's tokens and a mean over rows ("sequence_sum", the log π(x) of the paper's formula with
a packed row as x). Both gradients are accumulated one after the other, then clipped together, after the sum.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

from training import corpus, packing, parallel, processes

Reduction = Literal["token_mean", "sequence_sum"]


class Ptx(NamedTuple):
    """The text of a run and what is done with it: γ, and how many packed rows stand beside each minibatch of episodes."""

    text: corpus.Corpus
    coef: float
    reduction: Reduction
    rows_per_minibatch: int
    parts: int
    seed: int

    def rows_at(self, step: int) -> list[int]:
        """The rows of optimiser step `step`: a pure function, so that a resumed run needs no cursor."""
        return corpus.rows_at(len(self.text.train.ids_BT), self.rows_per_minibatch, self.seed, step)


def add_gradient(model: torch.nn.Module, ptx: Ptx, step: int, device: torch.device) -> dict[str, float]:
    """Add γ · ∇(loss on text) to the gradients that are there; returns the loss and norms, before any clipping.

    `ptx_gradient_norm` is ‖γ·ptx‖, `ptx_gradient_ratio` that over ‖PPO‖, absent where there is no PPO gradient.
    """
    ppo_norm = gradient_norm(model)
    held = {p: p.grad for p in model.parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)  # apart for a moment, so that the norm of each can be told
    with parallel.step(model):
        loss = backward(model, ptx.text.train, ptx.rows_at(step), ptx.coef, ptx.reduction, ptx.parts, device)
    ptx_norm = gradient_norm(model)
    for parameter, gradient in held.items():
        parameter.grad = gradient if parameter.grad is None else gradient.add_(parameter.grad)
    figures = processes.total({"ptx_loss": loss}) | {"ptx_gradient_norm": ptx_norm}
    return figures | ({"ptx_gradient_ratio": ptx_norm / ppo_norm} if ppo_norm else {})


def backward(
    model: torch.nn.Module,
    rows: packing.PackedRows,
    chosen: list[int],
    coef: float,
    reduction: Reduction,
    parts: int,
    device: torch.device,
) -> float:
    """Accumulate coef · ∇loss over the chosen rows, in `parts` passes that change nothing but rounding; returns the loss (nats).

    Every pass divides its sum by the same count: the target tokens of all chosen rows, or the number of rows. Of several
    processes each runs its share of the rows: gradient and loss are terms of a sum.
    """
    count = corpus.target_count(rows, chosen) if reduction == "token_mean" else len(chosen)
    mine = [chosen[i] for i in processes.share([1] * len(chosen))]
    size = max(1, -(-len(mine) // parts))
    total = 0.0
    for start in range(0, len(mine), size):
        loss_sum, _ = corpus.loss_sum(model, rows, mine[start : start + size], device)
        (coef * loss_sum / count).backward()
        total += loss_sum.item() / count
    return total


def gradient_norm(model: torch.nn.Module) -> float:
    """The norm of all gradients together, before any clipping; 0 where there is none."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return parallel.number(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0
