"""From hidden states to losses and log-probabilities without ever holding logits of shape [B, T, V].

The unembedding is applied to some tokens at a time, and only to the tokens that are asked for. `logprobs_at` and `loss_sum_at`
take a model; `linear_token_logprobs` and `linear_loss_sum` take hidden states and the unembedding's weight. (torch 2.13 has
`F.linear_cross_entropy`, 2.11 does not, and neither gives log-probabilities at a temperature.)

Some models change their logits after the unembedding (Gemma caps them, Granite and Cohere scale them): `unembedding_of` finds
out by trying, and for those the plain logits are taken.

Shapes: B rows, T tokens, N chosen tokens, H hidden size, V vocabulary. Masks True = keep.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from training.precision import in_precision

CHUNK_LOGITS = {"cpu": 2**22, "cuda": 2**27}
"""Logits held at a time: 16 MiB in float32 on a CPU; 512 MiB on a GPU, whose matrix products want more rows at once."""


# ---- of a model -----------------------------------------------------------------------------------------------------


@in_precision
def logprobs_at(
    model,
    ids_BT: torch.Tensor,
    attention_mask: torch.Tensor | None,
    positions_BT: torch.Tensor | None,
    labels_BT: torch.Tensor,
    keep_BT: torch.Tensor,
    temperature: float = 1.0,
) -> torch.Tensor:
    """log π(labels[b, t]) given the tokens up to and including t, where keep_BT, row by row → (N,) in float32.

    Labels are not shifted here: for the next token they are ids rolled by one. Rows padded on the right need neither mask
    nor positions (None): nothing kept comes after a pad. Differentiable, recomputing in backward.
    """
    inputs, targets_N = (ids_BT, attention_mask, positions_BT), labels_BT[keep_BT]
    head = unembedding_of(model)
    if head is None:
        logits_NV = _logits(model, *inputs)[keep_BT].float() / temperature
        return -F.cross_entropy(logits_NV, targets_N, reduction="none")
    hidden_NH = _hidden(model, *inputs)[keep_BT]
    return linear_token_logprobs(hidden_NH, head.weight, targets_N, bias_V=head.bias, temperature=temperature)


@in_precision
def loss_sum_at(
    model,
    ids_BT: torch.Tensor,
    attention_mask: torch.Tensor | None,
    positions_BT: torch.Tensor | None,
    labels_BT: torch.Tensor,
    loss_BT: torch.Tensor,
    weight_BT: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sum of −log π(labels[b, t]) over loss_BT, each times its weight; arguments as for `logprobs_at`.

    A sum, so that accumulated parts divide once by the count of the whole batch: the token mean stays the same.
    """
    inputs, targets_N = (ids_BT, attention_mask, positions_BT), labels_BT[loss_BT]
    weight_N = None if weight_BT is None else weight_BT[loss_BT]
    head = unembedding_of(model)
    if head is None:
        loss_N = F.cross_entropy(_logits(model, *inputs)[loss_BT].float(), targets_N, reduction="none")
        return loss_N.sum() if weight_N is None else (loss_N * weight_N).sum()
    hidden_NH = _hidden(model, *inputs)[loss_BT]
    return linear_loss_sum(hidden_NH, head.weight, targets_N, bias_V=head.bias, weight_N=weight_N)


def unembedding_of(model) -> torch.nn.Linear | None:
    """The layer whose output on the body's hidden states are the model's logits, or None where there is no such layer.

    Found by running the model on four tokens, once per model; what it is called and what stands behind it need not be known.
    """
    if model not in _UNEMBEDDINGS:
        _UNEMBEDDINGS[model] = _is_plain(model)
    return _causal(model).get_output_embeddings() if _UNEMBEDDINGS[model] else None


_UNEMBEDDINGS: weakref.WeakKeyDictionary[torch.nn.Module, bool] = weakref.WeakKeyDictionary()


@torch.no_grad()
def _is_plain(model) -> bool:
    config = getattr(model, "active_peft_config", None)
    if config is not None and config.is_prompt_learning:
        return False  # the prefix comes in through the wrapper's own forward
    head = _causal(model).get_output_embeddings()
    if type(head) is not torch.nn.Linear:
        return False
    was_training = model.training
    model.eval()
    ids_BT = torch.arange(4, device=head.weight.device)[None]
    inputs = (ids_BT, torch.ones_like(ids_BT), ids_BT)
    logits_BTV, hidden_BTH = _logits(model, *inputs), _hidden(model, *inputs)
    model.train(was_training)
    return hidden_BTH.shape[-1] == head.in_features and torch.allclose(logits_BTV, head(hidden_BTH), rtol=1e-3)


def _causal(model):
    """The causal model itself: peft wraps it, with its layers changed in place."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _hidden(model, ids_BT, attention_mask, positions_BT) -> torch.Tensor:
    body = _causal(model).base_model
    return body(
        input_ids=ids_BT, attention_mask=attention_mask, position_ids=positions_BT, use_cache=False
    ).last_hidden_state


def _logits(model, ids_BT, attention_mask, positions_BT) -> torch.Tensor:
    return model(input_ids=ids_BT, attention_mask=attention_mask, position_ids=positions_BT, use_cache=False).logits


# ---- of hidden states -----------------------------------------------------------------------------------------------


def linear_token_logprobs(
    hidden_NH: torch.Tensor,
    weight_VH: torch.Tensor,
    targets_N: torch.Tensor,
    *,
    bias_V: torch.Tensor | None = None,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> torch.Tensor:
    """log softmax((hidden · weightᵀ + bias) / temperature) at the targets → (N,) in float32, `chunk` tokens at a time.

    Differentiable in hidden states, weight and bias; backward computes each chunk's logits once more.
    """
    hidden_NH, weight_VH, bias_V = _autocast(hidden_NH, weight_VH, bias_V)
    chunk = chunk or _chunk_tokens(weight_VH)
    return _TokenLogprobs.apply(hidden_NH, weight_VH, bias_V, targets_N, temperature, chunk)


def linear_loss_sum(
    hidden_NH: torch.Tensor,
    weight_VH: torch.Tensor,
    targets_N: torch.Tensor,
    *,
    bias_V: torch.Tensor | None = None,
    weight_N: torch.Tensor | None = None,
    chunk: int | None = None,
) -> torch.Tensor:
    """Σ weight · −log softmax(hidden · weightᵀ + bias) at the targets, a scalar in float32, `chunk` tokens at a time.

    The gradients are computed with the loss, while a chunk's logits are at hand: no matrix product is done twice.
    """
    hidden_NH, weight_VH, bias_V = _autocast(hidden_NH, weight_VH, bias_V)
    chunk = chunk or _chunk_tokens(weight_VH)
    return _LossSum.apply(hidden_NH, weight_VH, bias_V, targets_N, weight_N, chunk)


def _chunk_tokens(weight_VH: torch.Tensor) -> int:
    return max(16, CHUNK_LOGITS.get(weight_VH.device.type, 2**22) // weight_VH.shape[0])


def _autocast(*tensors: torch.Tensor | None) -> list[Any]:
    """Under autocast, what a linear layer would compute in; a Function's inside knows nothing of autocast."""
    device = next(tensor.device.type for tensor in tensors if tensor is not None)
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [None if tensor is None else tensor.to(dtype) for tensor in tensors]


def _chunks(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _chunk_logits(hidden_CH, weight_VH, bias_V, temperature: float = 1.0) -> torch.Tensor:
    with torch.autocast(hidden_CH.device.type, enabled=False):
        logits_CV = F.linear(hidden_CH, weight_VH, bias_V).float()
    return logits_CV if temperature == 1.0 else logits_CV / temperature


class _Gradients:
    """Gradients of hidden states, weight and bias, gathered chunk by chunk from those of the logits; weights in float32."""

    def __init__(self, hidden_NH, weight_VH, bias_V, needed):
        self.hidden_NH, self.weight_VH, self.bias_V = hidden_NH, weight_VH, bias_V
        self.of_hidden = torch.empty_like(hidden_NH) if needed[0] else None
        self.of_weight = torch.zeros_like(weight_VH, dtype=torch.float32) if needed[1] else None
        self.of_bias = torch.zeros_like(bias_V, dtype=torch.float32) if bias_V is not None and needed[2] else None

    def add(self, rows: slice, grad_CV: torch.Tensor) -> None:
        """Take in one chunk's gradient of the logits."""
        cast_CV = grad_CV.to(self.weight_VH.dtype)
        if self.of_hidden is not None:
            torch.mm(cast_CV, self.weight_VH, out=self.of_hidden[rows])
        if self.of_weight is not None:
            if self.of_weight.dtype == cast_CV.dtype:
                self.of_weight.addmm_(cast_CV.T, self.hidden_NH[rows])
            else:
                self.of_weight += torch.mm(cast_CV.T, self.hidden_NH[rows])
        if self.of_bias is not None:
            self.of_bias += grad_CV.sum(0)

    def result(self) -> list[torch.Tensor | None]:
        """The three gradients, in the dtypes of what they are of."""
        pairs = (
            (self.of_hidden, self.hidden_NH),
            (self.of_weight, self.weight_VH),
            (self.of_bias, self.bias_V),
        )
        return [None if grad is None else grad.to(like.dtype) for grad, like in pairs]


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_NH, weight_VH, bias_V, targets_N, temperature, chunk):
        logprobs_N = torch.empty(len(targets_N), dtype=torch.float32, device=hidden_NH.device)
        normalizer_N = torch.empty_like(logprobs_N)
        for rows in _chunks(len(targets_N), chunk):
            logits_CV = _chunk_logits(hidden_NH[rows], weight_VH, bias_V, temperature)
            normalizer_N[rows] = logits_CV.logsumexp(-1)
            logprobs_N[rows] = logits_CV.gather(1, targets_N[rows, None]).squeeze(1) - normalizer_N[rows]
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V, targets_N, normalizer_N)
        ctx.temperature, ctx.chunk = temperature, chunk
        return logprobs_N

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_N):
        hidden_NH, weight_VH, bias_V, targets_N, normalizer_N = ctx.saved_tensors
        gradients = _Gradients(hidden_NH, weight_VH, bias_V, ctx.needs_input_grad)
        for rows in _chunks(len(targets_N), ctx.chunk):
            logits_CV = _chunk_logits(hidden_NH[rows], weight_VH, bias_V, ctx.temperature)
            probs_CV = logits_CV.sub_(normalizer_N[rows, None]).exp_()
            probs_CV.scatter_add_(1, targets_N[rows, None], torch.full_like(probs_CV[:, :1], -1.0))
            gradients.add(rows, probs_CV.mul_(-grad_N[rows, None] / ctx.temperature))
        return (*gradients.result(), None, None, None)


class _LossSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_NH, weight_VH, bias_V, targets_N, weight_N, chunk):
        gradients = _Gradients(hidden_NH, weight_VH, bias_V, ctx.needs_input_grad)
        loss = torch.zeros((), dtype=torch.float32, device=hidden_NH.device)
        for rows in _chunks(len(targets_N), chunk):
            logprobs_CV = F.log_softmax(_chunk_logits(hidden_NH[rows], weight_VH, bias_V), dim=-1)
            loss_C = -logprobs_CV.gather(1, targets_N[rows, None]).squeeze(1)
            loss += loss_C.sum() if weight_N is None else (loss_C * weight_N[rows]).sum()
            if any(ctx.needs_input_grad):
                grad_CV = logprobs_CV.exp_()
                grad_CV.scatter_add_(1, targets_N[rows, None], torch.full_like(grad_CV[:, :1], -1.0))
                gradients.add(rows, grad_CV if weight_N is None else grad_CV.mul_(weight_N[rows, None]))
        ctx.gradients = gradients.result()
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        scaled = [None if gradient is None else gradient * grad for gradient in ctx.gradients]
        return (*scaled, None, None, None)
