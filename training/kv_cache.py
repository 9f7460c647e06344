"""A key/value cache with room ahead: a token is written behind those before it, where transformers' own copies them all.

Shapes: B rows, h heads, T tokens, d width of a head.
"""

from __future__ import annotations

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

ROOM = 64
"""Columns of room made when a layer is full, or an eighth of what it holds if that is more: copying stays rare."""


class RoomyLayer(DynamicLayer):
    """transformers' layer of full attention, with `keys` and `values` as views of longer buffers. For sampling only: what was
    handed out is written behind later.
    """

    buffers: list[torch.Tensor] | None = None

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_args, **_keywords):
        """Keep these (B, h, T, d) behind what is there → (keys, values) of all."""
        start = self.get_seq_length()
        end = start + key_states.shape[2]
        if self.buffers is None or self.buffers[0].shape[2] < end:
            columns = end + max(ROOM, end // 8)
            self.buffers = [
                longer(held, states, columns) for held, states in ((self.keys, key_states), (self.values, value_states))
            ]
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = states
        self.keys, self.values = (buffer[:, :, :end] for buffer in self.buffers)
        self.is_initialized = True
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows alone."""
        super().batch_select_indices(indices)
        self.buffers = None


def longer(held: torch.Tensor | None, like: torch.Tensor, columns: int) -> torch.Tensor:
    """A buffer of so many columns that begins with what is held."""
    rows, heads, _, width = like.shape
    buffer = like.new_empty(rows, heads, columns, width)
    if held is not None:
        buffer[:, :, : held.shape[2]] = held
    return buffer


def roomy_cache(model) -> DynamicCache:
    """A cache for this model to sample with; its layers with a window or a state are as transformers makes them."""
    cache = DynamicCache(config=model.config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
