"""Batched sampling from the full distribution at a temperature, with a key/value cache and left-padded prompts.

No top-p or top-k: PPO recomputes log-probabilities over the whole vocabulary, and the KL under truncation is not defined.
Shapes: B rows, P prompt tokens, R response tokens. Masks True = keep.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from training import processes
from training.compiling import uncompiled
from training.data import pad_left
from training.kv_cache import roomy_cache
from training.models import positions_of, scores_at_end, token_scores
from training.precision import in_precision
from training.report import Sample
from training.unembedding import logprobs_at

COMPACT_BELOW = 0.75
"""Finished rows leave the batch when fewer than this share of its rows still run: copying the cache costs about a step."""


class Rollout(NamedTuple):
    """Sampled responses. `lengths_B` counts response tokens, EOS included; `finished_B`: ended by EOS, not by length.

    `logprobs_BR`: log π of each token in the distribution that it was drawn from, in float32; 0 on padding.
    """

    prompts_BP: torch.Tensor
    prompt_keep_BP: torch.Tensor
    responses_BR: torch.Tensor
    lengths_B: torch.Tensor
    finished_B: torch.Tensor
    logprobs_BR: torch.Tensor

    @property
    def response_keep_BR(self) -> torch.Tensor:
        """Which response tokens were sampled, by length."""
        return torch.arange(self.responses_BR.shape[1], device=self.lengths_B.device) < self.lengths_B[:, None]

    def tokens(self) -> list[list[int]]:
        """The responses' ids, EOS included."""
        return [row[:n] for row, n in zip(self.responses_BR.tolist(), self.lengths_B.tolist(), strict=True)]

    def finish_reasons(self) -> list[str]:
        """ "stop" or "length" for each response, in OpenAI's words."""
        return ["stop" if finished else "length" for finished in self.finished_B.tolist()]


@torch.no_grad()
@uncompiled
@in_precision
def sample(
    model,
    prompts: Sequence[Sequence[int]],
    *,
    eos_id: int,
    pad_id: int,
    max_new_tokens: int,
    temperature: float,
    generator: torch.Generator,
    rows: Sequence[int] | None = None,
) -> Rollout:
    """One response per prompt, at most `max_new_tokens` long; nothing is ever appended that the model did not sample.

    All random numbers are drawn beforehand on the CPU, one per step and row, so a row's text depends neither on the limit,
    nor on when other rows end, nor on the device's generator. With `rows`, only those of the prompts are
    answered, each with the numbers that it has among all of them. `temperature` 0 takes the likeliest token. Leaves `model` in
    evaluation mode.
    """
    model.eval()
    device = next(model.parameters()).device
    uniforms_BR = torch.rand(max_new_tokens, len(prompts), generator=generator, dtype=torch.float64).T.to(device)
    if rows is not None:
        prompts, uniforms_BR = [prompts[row] for row in rows], uniforms_BR[list(rows)]
    count = len(prompts)
    prompts_BP, prompt_keep_BP = pad_left(prompts, pad_id, device)
    responses_BR = torch.full((count, max_new_tokens), pad_id, device=device)
    logprobs_BR = torch.zeros(count, max_new_tokens, device=device)
    lengths_B = torch.full((count,), max_new_tokens, device=device)
    finished_B = torch.zeros(count, dtype=torch.bool, device=device)
    running = torch.arange(count, device=device)  # the rows still in the batch, by their number
    cache = roomy_cache(model)
    keep, inputs, positions = prompt_keep_BP, prompts_BP, positions_of(prompt_keep_BP)
    for step in range(max_new_tokens):
        output = model(
            input_ids=inputs,
            attention_mask=keep,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        tokens, logprobs_B = draw(output.logits[:, -1], uniforms_BR[running, step], temperature)
        responses_BR[running, step] = torch.where(finished_B[running], pad_id, tokens)
        logprobs_BR[running, step] = logprobs_B.masked_fill(finished_B[running], 0.0)
        ended = running[(tokens == eos_id) & ~finished_B[running]]
        lengths_B[ended] = step + 1
        finished_B[ended] = True
        alive = ~finished_B[running]
        if not alive.any():
            break
        inputs, positions = tokens[:, None], positions[:, -1:] + 1
        keep = torch.cat([keep, torch.ones_like(keep[:, :1])], dim=1)
        if alive.float().mean() < COMPACT_BELOW:
            chosen = alive.nonzero().squeeze(1)
            cache.batch_select_indices(chosen)
            running, inputs, positions, keep = running[chosen], inputs[chosen], positions[chosen], keep[chosen]
    width = int(lengths_B.max())
    return Rollout(prompts_BP, prompt_keep_BP, responses_BR[:, :width], lengths_B, finished_B, logprobs_BR[:, :width])


def put_together(
    part: Rollout | None, rows: Sequence[int], prompts: Sequence[Sequence[int]], pad_id: int, model
) -> Rollout:
    """The rollout of all prompts, in every process, from each process's part: what it sampled for its own rows (None: it had none)."""
    device = next(model.parameters()).device
    parts = (part.tokens(), part.finished_B.tolist(), part.logprobs_BR.tolist()) if part else ((), (), ())
    texts = dict(zip(rows, zip(*parts, strict=True), strict=True)) if part else {}
    found = {row: text for own in processes.gather(texts) for row, text in own.items()}
    lengths_B = torch.tensor([len(found[row][0]) for row in range(len(prompts))], device=device)
    responses_BR = torch.full((len(prompts), int(lengths_B.max())), pad_id)
    logprobs_BR = torch.zeros(responses_BR.shape)
    for row, length in enumerate(lengths_B.tolist()):
        responses_BR[row, :length] = torch.tensor(found[row][0])
        logprobs_BR[row, :length] = torch.tensor(found[row][2][:length])
    finished_B = torch.tensor([found[row][1] for row in range(len(prompts))], device=device)
    padded = pad_left(prompts, pad_id, device)
    return Rollout(*padded, responses_BR.to(device), lengths_B, finished_B, logprobs_BR.to(device))


def draw(logits_BV: torch.Tensor, uniforms_B: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """One token per row by inverting the cumulative distribution at a uniform number in [0, 1), and its log π → (B,), (B,)."""
    if temperature == 0:
        return logits_BV.argmax(-1), logits_BV.new_zeros(len(logits_BV), dtype=torch.float32)
    probs_BV = torch.softmax(logits_BV.double() / temperature, dim=-1)
    cumulative_BV = probs_BV.cumsum(-1)
    threshold_B1 = (uniforms_B * cumulative_BV[:, -1])[:, None]
    tokens_B1 = torch.searchsorted(cumulative_BV, threshold_B1, right=True).clamp(max=logits_BV.shape[-1] - 1)
    return tokens_B1.squeeze(1), probs_BV.gather(1, tokens_B1).log().squeeze(1).float()


def sample_texts(
    model,
    tokenizer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    batch: int = 256,
    progress: Callable[[int], object] | None = None,
) -> tuple[list[str], list[str]]:
    """(texts, finish reasons) for any number of prompts, in their order. `progress` is told how many were just done.

    Each batch has a generator of its own, seeded by (seed, batch number).
    """
    texts: list[str] = []
    reasons: list[str] = []
    for number, start in enumerate(range(0, len(prompts), batch)):
        rollout = sample(
            model,
            prompts[start : start + batch],
            eos_id=tokenizer.eos_token_id,
            pad_id=tokenizer.pad_token_id,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            generator=torch.Generator().manual_seed(seed * 1_000_003 + number),
        )
        texts += decode(tokenizer, rollout)
        reasons += rollout.finish_reasons()
        if progress:
            progress(len(rollout.lengths_B))
    return texts, reasons


def decode(tokenizer, rollout: Rollout) -> list[str]:
    """The responses' texts, special tokens left out."""
    return tokenizer.batch_decode(rollout.tokens(), skip_special_tokens=True)


def transcripts(tokenizer, rollout: Rollout, count: int) -> list[dict[str, str]]:
    """Prompt, response and finish reason of the first `count` rows, as text without special tokens, to be looked at."""
    if count == 0:
        return []  # of no rows batch_decode makes one empty text
    first = Rollout(*(tensor[:count] for tensor in rollout))
    prompts = [ids[keep].tolist() for ids, keep in zip(first.prompts_BP, first.prompt_keep_BP, strict=True)]
    rows = zip(
        tokenizer.batch_decode(prompts, skip_special_tokens=True),
        decode(tokenizer, first),
        first.finish_reasons(),
        strict=True,
    )
    return [{"prompt": prompt, "response": text, "finish_reason": reason} for prompt, text, reason in rows]


def side_by_side(
    tokenizer, prompts: Sequence[Sequence[int]], before: Sequence[str], after: Sequence[str]
) -> list[Sample]:
    """What two models said to the same prompts, for a run's report."""
    texts = tokenizer.batch_decode([list(prompt) for prompt in prompts], skip_special_tokens=True) if prompts else []
    return [Sample(text, first, second) for text, first, second in zip(texts, before, after, strict=True)]


# ---- scoring the very tokens that were sampled ------------------------------------------------------------------------


def sequence_of(rollout: Rollout) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(ids_BT, keep_BT, positions_BT) of prompts and responses side by side: the very tokens that were sampled."""
    ids_BT = torch.cat([rollout.prompts_BP, rollout.responses_BR], dim=1)
    keep_BT = torch.cat([rollout.prompt_keep_BP, rollout.response_keep_BR], dim=1)
    return ids_BT, keep_BT, positions_of(keep_BT)


def response_logprobs(model, ids_BT, keep_BT, positions_BT, responses_BR, temperature: float) -> torch.Tensor:
    """log π of each response token, from the hidden state one position before it → (B, R) in float32; 0 on padding.

    The temperature must be the one that sampled. Logits are computed for kept response tokens only, some at a time.
    """
    width = responses_BR.shape[1]
    response_keep_BR = keep_BT[:, -width:]
    before_BT = torch.zeros_like(keep_BT)
    before_BT[:, -width - 1 : -1] = response_keep_BR
    labels_BT = ids_BT.roll(-1, dims=1)
    logprobs_N = logprobs_at(model, ids_BT, keep_BT, positions_BT, labels_BT, before_BT, temperature)
    return logprobs_N.new_zeros(responses_BR.shape).masked_scatter(response_keep_BR, logprobs_N)


def end_scores(reward_model, rollout: Rollout) -> torch.Tensor:
    """The reward model's score at each response's last token, by length → (B,)."""
    scores_BT = token_scores(reward_model, *sequence_of(rollout))
    return scores_at_end(scores_BT, rollout.prompts_BP.shape[1] + rollout.lengths_B)
