"""Episodes without their padding: several in a row, none seeing another, scored token by token.

A rollout is padded twice, before the prompts and behind the responses; in the tiny world a third of its columns are padding.
Shapes: B episodes, P prompt tokens, R response tokens, T = P + R; L rows of C columns; N response tokens that are kept.
Masks True = keep.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from training import models, packing
from training.errors import StageError
from training.generation import Rollout, sequence_of
from training.unembedding import logprobs_at

ROW_WIDTHS = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
"""Widths of shared rows that are tried, as multiples of the longest episode: short ones fit beside it, and attention stays cheap."""

ATTENTION_COLUMNS = 1024
"""Columns at which attention costs as much as all matrix products of a layer: a model of width 160 on a CPU; wider ones have more."""


class Sequences(NamedTuple):
    """Prompts, left-padded, and right-padded responses side by side; `responses_BR` are the last R columns of `ids_BT`."""

    ids_BT: torch.Tensor
    keep_BT: torch.Tensor
    positions_BT: torch.Tensor
    responses_BR: torch.Tensor
    response_keep_BR: torch.Tensor


class Packed(NamedTuple):
    """Episodes in rows. `before_LC` marks the positions whose next token is a response token: those that chose it.

    The mask is (L, 1, C, C) where rows are shared. In rows of one episode, padded on the right, nothing kept comes after a pad:
    mask and positions are None, and attention runs its causal path, which computes half as much.

    `slots_N[n]` is where the n-th of them belongs in a flattened (B, R); `ends_B` where each episode's last token stands in a
    flattened (L, C).
    """

    ids_LC: torch.Tensor
    mask_LC: torch.Tensor | None
    positions_LC: torch.Tensor | None
    before_LC: torch.Tensor
    slots_N: torch.Tensor
    ends_B: torch.Tensor
    shape: tuple[int, int]

    @property
    def inputs(self) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Ids, attention mask and positions, as a model takes them."""
        return self.ids_LC, self.mask_LC, self.positions_LC

    def spread(self, values_N: torch.Tensor) -> torch.Tensor:
        """One value per kept response token → (B, R), 0 on padding; differentiable."""
        rows, width = self.shape
        return values_N.new_zeros(rows * width).scatter(0, self.slots_N, values_N).view(rows, width)


def sequences_of(rollout: Rollout) -> Sequences:
    """A rollout's sequences: the very tokens that were sampled."""
    return Sequences(*sequence_of(rollout), rollout.responses_BR, rollout.response_keep_BR)


def can_share_rows(model, columns: int) -> bool:
    """Whether episodes may stand side by side for this model: with flash or eager attention, a shorter window or a state, not."""
    try:
        mask = packing.mask_for(model, torch.zeros(1, columns, dtype=torch.long))
    except StageError:
        return False
    return mask.dtype == torch.bool


def rows_for(lengths: list[int], widths: list[int]) -> tuple[int, list[list[int]]]:
    """Columns of a row, and which episodes each holds: the cheapest of a row for each, and of shared rows of these widths.

    The cost is that of the columns and of attention, which in a shared row with its mask sees the whole row, alone half of it.
    """
    longest = max(lengths)
    best, chosen = (
        len(lengths) * longest * (1 + longest / 2 / ATTENTION_COLUMNS),
        (longest, [[n] for n in range(len(lengths))]),
    )
    for width in widths:
        rows = packing.first_fit(lengths, width)
        cost = len(rows) * width * (1 + width / ATTENTION_COLUMNS)
        if len(rows) < len(lengths) and cost < best:
            best, chosen = cost, (width, rows)
    return chosen


def pack(sequences: Sequences, *readers: torch.nn.Module, widths: list[int] | None = None) -> Packed:
    """The episodes in rows that cost least to run; every kept token once and no other.

    Several share a row where that saves columns and all models that will read them keep episodes apart. `widths`: of the
    shared rows that are tried, at least the longest episode's.
    """
    device = sequences.ids_BT.device
    lengths = sequences.keep_BT.sum(1).tolist()
    responses = sequences.response_keep_BR.sum(1).tolist()
    longest_first = sorted(range(len(lengths)), key=lambda b: -lengths[b])
    width = sequences.responses_BR.shape[1]
    tried = [int(share * max(lengths)) for share in ROW_WIDTHS] if widths is None else widths
    tried = [columns for columns in tried if all(can_share_rows(reader, columns) for reader in readers)]
    columns, rows = rows_for([lengths[b] for b in longest_first], tried)
    is_shared = len(rows) < len(lengths)
    segments_LC, positions_LC, slots_LC = torch.zeros(3, len(rows), columns, dtype=torch.long)
    before_LC = torch.zeros(len(rows), columns, dtype=torch.bool)
    ends, placed = [0] * len(lengths), []
    for row, members in enumerate(rows):
        end = 0
        for segment, member in enumerate(members, start=1):
            b = longest_first[member]
            start, end = end, end + lengths[b]
            segments_LC[row, start:end] = segment
            positions_LC[row, start:end] = torch.arange(lengths[b])
            before_LC[row, end - 1 - responses[b] : end - 1] = True
            slots_LC[row, end - 1 - responses[b] : end - 1] = b * width + torch.arange(responses[b])
            ends[b] = row * columns + end - 1
            placed.append(b)
    order = torch.tensor(placed, device=device)
    tensors = (segments_LC, positions_LC, before_LC, slots_LC[before_LC], torch.tensor(ends))
    segments_LC, positions_LC, before_LC, slots_N, ends_B = (tensor.to(device) for tensor in tensors)
    ids_LC = torch.zeros_like(segments_LC)
    ids_LC[segments_LC > 0] = sequences.ids_BT[order][sequences.keep_BT[order]]
    shape = (len(lengths), width)
    if not is_shared:
        return Packed(ids_LC, None, None, before_LC, slots_N, ends_B, shape)
    return Packed(ids_LC, packing.attention_mask(segments_LC), positions_LC, before_LC, slots_N, ends_B, shape)


def response_logprobs(model, packed: Packed, temperature: float) -> torch.Tensor:
    """log π of each response token, from the hidden state one position before it → (B, R) in float32; 0 on padding.

    The temperature must be the one that sampled. Logits are computed for kept response tokens only, some at a time.
    """
    labels_LC = packed.ids_LC.roll(-1, dims=1)
    return packed.spread(logprobs_at(model, *packed.inputs, labels_LC, packed.before_LC, temperature))


def response_values(critic, packed: Packed) -> torch.Tensor:
    """The critic's value of the state in which each response token was chosen, so one position before it → (B, R)."""
    return packed.spread(models.token_scores(critic, *packed.inputs)[packed.before_LC])


def last_scores(reward_model, packed: Packed) -> torch.Tensor:
    """The reward model's score at each response's last token, by length → (B,)."""
    return models.token_scores(reward_model, *packed.inputs).flatten()[packed.ends_B]
