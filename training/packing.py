"""Packing documents into rows of equal length without leaks: a token attends only to its own document.

Shapes: B rows, T tokens. Masks are boolean, True = keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from training.data import Example
from training.errors import StageError


class PackedRows(NamedTuple):
    """Rows of packed documents. Segment 0 is padding; documents count from 1 within a row, positions from 0 in each."""

    ids_BT: torch.Tensor
    segments_BT: torch.Tensor
    positions_BT: torch.Tensor


def first_fit(lengths: Sequence[int], capacity: int, open_rows: int = 64) -> list[list[int]]:
    """Indices of documents per row, each row's lengths adding to at most `capacity`; every document exactly once.

    A document goes to the first of the last `open_rows` rows that has room, so time grows linearly with the documents.
    Raises ValueError for a document longer than `capacity`: cutting is the caller's explicit choice.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index, length in enumerate(lengths):
        if length > capacity:
            raise ValueError(f"document {index} has {length} tokens, a row holds {capacity}")
        first_open = max(0, len(rows) - open_rows)
        row = next((r for r in range(first_open, len(rows)) if room[r] >= length), None)
        if row is None:
            rows.append([])
            room.append(capacity)
            row = len(rows) - 1
        rows[row].append(index)
        room[row] -= length
    return rows


def pack(documents: Sequence[Sequence[int]], capacity: int, pad_id: int) -> PackedRows:
    """Documents (token ids, their end-of-text included) as rows of `capacity` tokens."""
    rows = first_fit([len(document) for document in documents], capacity)
    ids_BT = torch.full((len(rows), capacity), pad_id)
    segments_BT = torch.zeros((len(rows), capacity), dtype=torch.long)
    positions_BT = torch.zeros((len(rows), capacity), dtype=torch.long)
    for row, members in enumerate(rows):
        start = 0
        for segment, index in enumerate(members, start=1):
            end = start + len(documents[index])
            ids_BT[row, start:end] = torch.tensor(documents[index])
            segments_BT[row, start:end] = segment
            positions_BT[row, start:end] = torch.arange(end - start)
            start = end
    return PackedRows(ids_BT, segments_BT, positions_BT)


def attention_mask(segments_BT: torch.Tensor) -> torch.Tensor:
    """Boolean (B, 1, T, T): causal, within one document. Padding attends to padding, so no row of the softmax is empty."""
    same = segments_BT[:, None, :, None] == segments_BT[:, None, None, :]
    width = segments_BT.shape[1]
    return same & torch.ones(width, width, dtype=torch.bool, device=segments_BT.device).tril()


def mask_for(model, segments_BT: torch.Tensor) -> torch.Tensor:
    """The mask of packed rows in the form that the model's attention takes. Raises StageError where it takes none.

    Flash attention has no mask at all; a window shorter than a row, and layers that carry a state from token to token
    (Mamba and its like), would mix documents whatever the mask says.
    """
    config = model.config.get_text_config()
    attention = config._attn_implementation or "eager"
    if attention not in ("sdpa", "eager"):
        raise StageError(f"packing needs attention with a mask (sdpa or eager), and this model uses {attention}")
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or (["sliding_attention"] if window else ["full_attention"]))
    if kinds - {"full_attention", "sliding_attention"} or getattr(model, "_is_stateful", False):
        raise StageError(f"packing would leak between documents in layers of kind {', '.join(sorted(kinds))}")
    if "sliding_attention" in kinds and window is not None and window < segments_BT.shape[1]:
        raise StageError(
            f"packed rows of {segments_BT.shape[1]} tokens are longer than the attention window of {window}"
        )
    mask = attention_mask(segments_BT)
    if attention == "sdpa":
        return mask
    return torch.zeros_like(mask, dtype=model.dtype).masked_fill_(~mask, torch.finfo(model.dtype).min)


def pack_examples(examples: Sequence[Example], capacity: int, pad_id: int) -> tuple[PackedRows, torch.Tensor]:
    """Prompts with their responses as packed rows, and loss_BT: which tokens the model is trained to produce.

    The first token of an example has nothing before it, so it is never among them.
    """
    rows = pack([example.ids for example in examples], capacity, pad_id)
    loss_BT = torch.zeros_like(rows.ids_BT, dtype=torch.bool)
    for row, members in enumerate(first_fit([len(example.ids) for example in examples], capacity)):
        start = 0
        for index in members:
            end = start + len(examples[index].ids)
            loss_BT[row, start + max(1, examples[index].prompt_tokens) : end] = True
            start = end
    return rows, loss_BT


def targets(packed: PackedRows) -> tuple[torch.Tensor, torch.Tensor]:
    """(labels_BT, loss_BT): the next token, and whether it belongs to the same document."""
    labels_BT = packed.ids_BT.roll(-1, dims=1)
    next_segments_BT = packed.segments_BT.roll(-1, dims=1)
    loss_BT = (packed.segments_BT == next_segments_BT) & (packed.segments_BT > 0)
    loss_BT[:, -1] = False
    return labels_BT, loss_BT
