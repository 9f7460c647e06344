"""The loss on demonstrations' responses, however a batch is laid out: padded in passes of like length, or packed.

Shapes: B rows, T tokens. Masks True = keep.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from training import packing, processes
from training.data import Example, collate, length_groups
from training.unembedding import loss_sum_at

PART_COST = {"cpu": 64, "cuda": 4096}
"""What a forward and backward pass costs beside its tokens, in tokens: so little padding is not worth a pass of its own."""


def backward_mean(
    model,
    examples: list[Example],
    parts: int,
    pad_id: int,
    device: torch.device,
    *,
    lm_coef: float = 0.0,
    share: float = 1.0,
    packed_tokens: int = 0,
) -> torch.Tensor:
    """Accumulate the gradient of share · (L_R + lm_coef · L_W) of a batch; returns L_R + lm_coef · L_W (nats, detached).

    Each token is weighted by the whole batch's counts, so neither the number of parts nor packing changes anything but
    rounding. Of several processes each runs its share of the batch, and gradient and loss are terms of a sum.
    """
    responses, texts = sum(e.response_tokens for e in examples), sum(len(e.ids) - 1 for e in examples)
    mine = [examples[i] for i in processes.share([len(e.ids) for e in examples])]
    total = torch.zeros((), device=device)
    for rows in rows_of(model, mine, parts, pad_id, device, packed_tokens):
        if lm_coef:
            weight_BT = rows.loss_BT / responses + lm_coef / texts
            loss = loss_sum_at(model, *rows.inputs, rows.labels_BT, rows.text_BT, weight_BT)
        else:
            loss = loss_sum_at(model, *rows.inputs, rows.labels_BT, rows.loss_BT) / responses
        (loss if share == 1 else share * loss).backward()
        total += loss.detach()
    return total


class Rows(NamedTuple):
    """Demonstrations as a model takes them: inputs (ids, mask, positions), and what each token should predict.

    At t stand the label of t and whether it is a response token (`loss_BT`), or any token of the same text (`text_BT`).
    """

    inputs: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]
    labels_BT: torch.Tensor
    loss_BT: torch.Tensor
    text_BT: torch.Tensor


def rows_of(
    model, examples: Sequence[Example], parts: int, pad_id: int, device: torch.device, packed_tokens: int
) -> Iterator[Rows]:
    """A batch as the passes it is split into: padded, with texts of like length together, or packed; an empty one in none."""
    if not examples:
        return
    if packed_tokens:
        packed, loss_BT = packing.pack_examples(examples, packed_tokens, pad_id)
        size = -(-len(loss_BT) // max(1, parts))
        for start in range(0, len(loss_BT), size):
            part = packing.PackedRows(*(tensor[start : start + size].to(device) for tensor in packed))
            labels_BT, text_BT = packing.targets(part)
            inputs = (part.ids_BT, packing.mask_for(model, part.segments_BT), part.positions_BT)
            yield Rows(inputs, labels_BT, _next(loss_BT[start : start + size].to(device)), text_BT)
        return
    for group in length_groups([len(e.ids) for e in examples], parts, PART_COST.get(device.type, 64)):
        batch = collate([examples[i] for i in group], pad_id, device)
        # Padded on the right, so a causal model needs no mask for the kept tokens.
        yield Rows((batch.ids_BT, None, None), batch.ids_BT.roll(-1, 1), _next(batch.loss_BT), _next(batch.keep_BT))


def _next(mask_BT: torch.Tensor) -> torch.Tensor:
    """The mask of each token's successor; the last has none."""
    next_BT = mask_BT.roll(-1, 1)
    next_BT[:, -1] = False
    return next_BT


@torch.no_grad()
def mean_loss(model, examples: list[Example], pad_id: int, batch: int, device: torch.device) -> float | None:
    """Nats per response token over the examples; None when there are none. Leaves the model in evaluation mode."""
    if not examples:
        return None
    model.eval()
    total = 0.0
    mine = [examples[i] for i in processes.share([len(e.ids) for e in examples])]
    for start in range(0, len(mine), batch):
        for rows in rows_of(model, mine[start : start + batch], 0, pad_id, device, 0):
            total += loss_sum_at(model, *rows.inputs, rows.labels_BT, rows.loss_BT).item()
    return processes.total({"loss": total})["loss"] / sum(example.response_tokens for example in examples)
