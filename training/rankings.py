"""Rankings of K responses through a model, in three interchangeable encodings that give equal results.

- `pairs`: each comparison as two whole sequences, as pairwise trainers do; C(K,2)·2·(P+R) tokens. Here as the reference.
- `responses`: each response once, after its prompt; K·(P+R) tokens (InstructGPT, section 3.5).
- `shared`: each prompt once, and its K responses after it; P + K·R tokens. The prompt's keys and values are computed once and
  stand, differentiably, before each of its responses, so that a token attends to the prompt and its own response and positions
  go on where the prompt ends. This is the shared-prefix row with a 4-D mask without the blocks that such a mask rules out.

Left-over lengths cost little: sequences run in groups of like length. Identical responses run once where the encoding allows;
gradients add up at the copies. Shapes: N rows, T tokens, d width. Masks True = keep.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from transformers import DynamicCache

from training.data import Comparison, Example
from training.errors import StageError
from training.losses import IndexedRanking
from training.precision import in_precision
from training.unembedding import linear_token_logprobs, unembedding_of

Encoding = Literal["auto", "pairs", "responses", "shared"]

GROUP_TOKENS = 8192
"""Tokens that one forward pass takes at most, unless one sequence alone is longer: past it a CPU's caches no longer help."""

PADDING_SHARE, PADDING_TOKENS = 0.1, 256
"""A group is cut when its padding passes both: this share of its tokens, and this many (a pass of its own would cost more)."""

SHARING_OVERHEAD = 1.1
"""What the second pass and the copies of keys and values cost: measured 5 to 15 % on two cores with a model of 0.9M."""


class Rows(NamedTuple):
    """Sequences that ran together, right-padded: their tokens (after a shared prefix, where there is one) and last hidden states.

    `members[n]`: which example row n is; `prompt_N`: how many tokens at the row's start are the prompt's, at least one;
    `lengths_N`: tokens of the row without padding.
    """

    members: list[int]
    ids_NT: torch.Tensor
    hidden_NTd: torch.Tensor
    prompt_N: torch.Tensor
    lengths_N: torch.Tensor


@dataclass(frozen=True)
class Runner:
    """Runs a model's body over examples in one encoding. Make it with `runner_for`, which checks that the model can."""

    model: Any
    encoding: Encoding
    pad_id: int

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def rows(self, examples: Sequence[Example]) -> Iterator[Rows]:
        """The examples, each in exactly one row, group by group; equal examples each in a row of their own."""
        families = families_of(examples)
        shared = [family for family in families if self.shares([examples[i] for i in family])]
        single = sorted(set(range(len(examples))).difference(*shared))
        for group in groups_by_length([len(examples[i].ids) for i in single]):
            chosen = [single[i] for i in group]
            yield self._run([examples[i] for i in chosen], chosen)
        for group in groups_by_length([examples[family[0]].prompt_tokens for family in shared]):
            yield from self._run_shared(examples, [shared[i] for i in group])

    def shares(self, family: Sequence[Example]) -> bool:
        """Whether these responses to one prompt run after one pass over it."""
        prompt = family[0].prompt_tokens
        if prompt < 2 or self.encoding in ("pairs", "responses"):
            return False
        return self.encoding == "shared" or sharing_pays(
            self.model, prompt, [example.response_tokens for example in family]
        )

    def _run(self, examples: Sequence[Example], index: list[int]) -> Rows:
        """One pass over whole sequences."""
        ids_NT, lengths_N = pad_right([example.ids for example in examples], self.pad_id, self.device)
        steps_T = torch.arange(ids_NT.shape[1], device=self.device)
        output = _body(self.model)(
            ids_NT,
            attention_mask=steps_T < lengths_N[:, None],
            position_ids=steps_T.expand_as(ids_NT),
            use_cache=False,
        )
        prompt_N = torch.tensor([example.prompt_tokens for example in examples], device=self.device)
        return Rows(index, ids_NT, output.last_hidden_state, prompt_N, lengths_N)

    def _run_shared(self, examples: Sequence[Example], families: Sequence[Sequence[int]]) -> Iterator[Rows]:
        """One pass over the families' prompts, then passes over their responses with the prompts' keys and values before them.

        The prompt's last token runs with each response, not with the prompt: its hidden state predicts the response's first
        token, and is the last of an empty response.
        """
        prompts = [examples[family[0]] for family in families]
        prefix_ids, prefix_lengths = pad_right(
            [example.ids[: example.prompt_tokens - 1] for example in prompts], self.pad_id, self.device
        )
        prefix_steps = torch.arange(prefix_ids.shape[1], device=self.device)
        prefix_keep = prefix_steps < prefix_lengths[:, None]
        cache = DynamicCache()
        _body(self.model)(
            prefix_ids,
            attention_mask=prefix_keep,
            position_ids=prefix_steps.expand_as(prefix_ids),
            past_key_values=cache,
            use_cache=True,
        )
        members = [(row, i) for row, family in enumerate(families) for i in family]
        for group in groups_by_length([examples[i].response_tokens + 1 for _, i in members]):
            prompt_rows = torch.tensor([members[j][0] for j in group], device=self.device)
            index = [members[j][1] for j in group]
            ids_NT, lengths_N = pad_right(
                [examples[i].ids[examples[i].prompt_tokens - 1 :] for i in index], self.pad_id, self.device
            )
            steps_T = torch.arange(ids_NT.shape[1], device=self.device)
            output = _body(self.model)(
                ids_NT,
                attention_mask=torch.cat([prefix_keep[prompt_rows], steps_T < lengths_N[:, None]], dim=1),
                position_ids=prefix_lengths[prompt_rows][:, None] + steps_T,
                past_key_values=_select(cache, prompt_rows),
                use_cache=True,
            )
            yield Rows(index, ids_NT, output.last_hidden_state, torch.ones_like(lengths_N), lengths_N)

    def each(self, examples: Sequence[Example], read: Callable[[Rows], torch.Tensor]) -> torch.Tensor:
        """What `read` takes from each example's row, (rows, …), in the order of the examples. Equal examples run once."""
        unique, inverse = (list(examples), None) if self.encoding == "pairs" else _distinct(examples)
        parts, order = [], []
        for rows in self.rows(unique):
            parts.append(read(rows))
            order += rows.members
        values = torch.cat(parts)[_inverse(order, self.device)]
        return values if inverse is None else values[torch.tensor(inverse, device=self.device)]

    def last_hidden(self, examples: Sequence[Example]) -> torch.Tensor:
        """The hidden state at each example's last token, found by length → (len(examples), d)."""
        return self.each(examples, lambda rows: rows.hidden_NTd[torch.arange(len(rows.members)), rows.lengths_N - 1])

    @in_precision
    def response_logprobs(self, examples: Sequence[Example]) -> torch.Tensor:
        """Σ log π over the tokens of each example's response, EOS included where it was finished → (len(examples),).

        The model must be a causal one whose logits are a linear layer's (`dpo.policy_runner` sees to it).
        """
        return self.each(examples, self._read_logprobs)

    def _read_logprobs(self, rows: Rows) -> torch.Tensor:
        head: Any = unembedding_of(self.model)
        steps_T = torch.arange(rows.ids_NT.shape[1] - 1, device=self.device)
        kept_NT = (steps_T >= rows.prompt_N[:, None] - 1) & (steps_T < rows.lengths_N[:, None] - 1)
        chosen = linear_token_logprobs(
            rows.hidden_NTd[:, :-1][kept_NT], head.weight, rows.ids_NT[:, 1:][kept_NT], bias_V=head.bias
        )
        logprobs_NT = torch.zeros(kept_NT.shape, dtype=chosen.dtype, device=self.device).masked_scatter(kept_NT, chosen)
        return logprobs_NT.sum(1)


def runner_for(model: Any, encoding: Encoding, pad_id: int) -> Runner:
    """A runner in this encoding. `auto` shares where `sharing_pays`, and nowhere if the model cannot.

    Raises StageError with the reason when `shared` is asked of a model that cannot, and for prompt and prefix tuning, whose
    learned prefix only peft's own forward puts in.
    """
    tuned = getattr(model, "active_peft_config", None)
    if tuned is not None and tuned.is_prompt_learning:
        raise StageError(
            f"{tuned.peft_type.value}: rankings run through the model's body, past a learned prefix; use LoRA"
        )
    if encoding in ("auto", "shared") and (reason := why_not_shared(model, pad_id)):
        if encoding == "shared":
            raise StageError(f"encoding shared: {reason}; use responses")
        encoding = "responses"
    return Runner(model, encoding, pad_id)


def what_runs(runner: Runner, comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """`encoding`: what these rankings run as, pairs, responses or shared; where `auto` shares the prompts of some alone it is mixed, and
    `rankings_shared` counts those.

    Each ranking is looked at by itself: further rankings of its prompt in a batch only make sharing pay more. To be asked of the
    model that training starts with.
    """
    if runner.encoding != "auto":
        return {"encoding": runner.encoding}
    shared = sum(runner.shares(_distinct(comparison.examples)[0]) for comparison in comparisons)
    if 0 < shared < len(comparisons):
        return {"encoding": "mixed", "rankings_shared": shared}
    return {"encoding": "shared" if shared else "responses"}


def sharing_pays(model: Any, prompt: int, responses: Sequence[int]) -> bool:
    """Whether running a prompt of this many tokens once costs less than running it with each response.

    The cost of a pass: tokens × 2 · (the body's parameters without embeddings), plus causal (query, key) pairs × 4 · width · layers.
    `responses`: tokens Σ(P + r), pairs Σ(P + r)²/2. `shared`: tokens (P − 1) + Σ(r + 1), pairs P²/2 + Σ r·(P + r/2), times 1.1
    for its second pass.
    """
    config = model.config.get_text_config()
    per_pair = 4 * config.hidden_size * config.num_hidden_layers
    matrices = (p.numel() for p in _layers(model).parameters() if p.ndim >= 2)
    per_token = 2 * sum(matrices)
    apart = sum((prompt + r) * per_token + (prompt + r) ** 2 / 2 * per_pair for r in responses)
    shared = (prompt - 1) * per_token + prompt**2 / 2 * per_pair
    shared += sum((r + 1) * per_token + r * (prompt + r / 2) * per_pair for r in responses)
    return SHARING_OVERHEAD * shared < apart


@torch.no_grad()
def why_not_shared(model: Any, pad_id: int) -> str | None:
    """Why the model cannot go on from a prompt's keys and values as if it had read prompt and response at once; None if it can.

    What its config tells is checked first; then two prompts of unlike length run both ways, and must agree.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        return f"{config.model_type} has layers of {', '.join(sorted(kinds))}, which a padded prompt would shift"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return f"{config.model_type} attends within a sliding window, which a padded prompt would shift"
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        return "gradient checkpointing keeps no keys and values"
    prompts = [[1, 2, 3, 4, 5], [3, 1]]
    examples = [Example([*prompt, *tail], len(prompt)) for prompt in prompts for tail in ([2, 4], [5])]
    was_training = model.training
    model.eval()
    try:
        apart = Runner(model, "responses", pad_id).last_hidden(examples)
        shared = Runner(model, "shared", pad_id).last_hidden(examples)
    except Exception as error:  # an architecture without a cache of keys and values fails in its own way
        return f"{config.model_type} takes no cached prompt ({type(error).__name__}: {error})"
    finally:
        model.train(was_training)
    tolerance = 0.05 if apart.dtype in (torch.bfloat16, torch.float16) else 1e-3
    if not torch.allclose(apart, shared, rtol=tolerance, atol=tolerance * float(apart.abs().max())):
        return f"{config.model_type} gives other hidden states after a cached prompt"
    return None


# ---- which sequences run together -----------------------------------------------------------------------------------


def families_of(examples: Sequence[Example]) -> list[list[int]]:
    """Indices of the examples by prompt, in the order in which prompts first appear."""
    families: dict[tuple[int, ...], list[int]] = {}
    for i, example in enumerate(examples):
        families.setdefault(tuple(example.ids[: example.prompt_tokens]), []).append(i)
    return list(families.values())


def groups_by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Indices, shortest first, cut into groups that hold little padding and at most GROUP_TOKENS tokens."""
    groups: list[list[int]] = []
    real = 0
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        padded = lengths[i] * (len(groups[-1]) + 1) if groups else 0
        waste = padded - real - lengths[i]
        if not groups or padded > GROUP_TOKENS or waste > max(PADDING_TOKENS, PADDING_SHARE * padded):
            groups.append([])
            real = 0
        groups[-1].append(i)
        real += lengths[i]
    return groups


def pad_right(
    sequences: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids_NT, lengths_N) of sequences padded to the longest."""
    lengths = [len(sequence) for sequence in sequences]
    width = max(lengths)
    rows = [[*sequence, *[pad_id] * (width - len(sequence))] for sequence in sequences]
    return torch.tensor(rows, device=device), torch.tensor(lengths, device=device)


def _distinct(examples: Sequence[Example]) -> tuple[list[Example], list[int]]:
    """(the examples without repeats, where each of the given ones stands among them)."""
    places: dict[tuple, int] = {}
    inverse = [places.setdefault((example.prompt_tokens, *example.ids), len(places)) for example in examples]
    firsts = dict(zip(reversed(inverse), reversed(examples), strict=True))
    return [firsts[i] for i in range(len(places))], inverse


def _inverse(order: Sequence[int], device: torch.device) -> torch.Tensor:
    """Where each of 0 … n−1 stands in `order`."""
    return torch.tensor(order, device=device).argsort()


def _select(cache: DynamicCache, rows: torch.Tensor) -> DynamicCache:
    """A copy of the cache that holds these of its rows; the cache itself stays, and gradients reach it."""
    chosen = copy.copy(cache)
    chosen.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in chosen.layers:
        state: Any = layer
        state.keys, state.values = (_Repeat.apply(tensor, rows) for tensor in (state.keys, state.values))
    return chosen


class _Repeat(torch.autograd.Function):
    """tensor[rows]; its own backward pass as a matrix product: index_put took 8 % of a step on a CPU, and scatter_add 16 %."""

    @staticmethod
    def forward(ctx, tensor: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(rows)
        ctx.count = len(tensor)
        return tensor.index_select(0, rows)

    @staticmethod
    def backward(ctx, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = gradients
        (rows,) = ctx.saved_tensors
        chosen_MN = (torch.arange(ctx.count, device=rows.device)[:, None] == rows).to(gradient.dtype)
        return (chosen_MN @ gradient.flatten(1)).view(ctx.count, *gradient.shape[1:]), None


def _body(model) -> torch.nn.Module:
    return (model.get_base_model() if hasattr(model, "get_base_model") else model).base_model


def _layers(model) -> torch.nn.Module:
    """The body without its embeddings."""
    return next((getattr(_body(model), name) for name in ("layers", "h") if hasattr(_body(model), name)), _body(model))


# ---- rankings as a batch --------------------------------------------------------------------------------------------


class Flattened(NamedTuple):
    """A batch of rankings as examples to run: `rankings` are indices into them, `origins` say (ranking, response) of each."""

    examples: list[Example]
    rankings: list[IndexedRanking]
    origins: list[tuple[int, int]]


def flatten(batch: Sequence[Comparison], encoding: Encoding, *, with_ties: bool = False) -> Flattened:
    """The batch's responses in a row; under `pairs` two for each comparison, which is then scored apart from all others."""
    flat = Flattened([], [], [])
    for number, comparison in enumerate(batch):
        start = len(flat.examples)
        compared = [*comparison.pairs, *(comparison.ties if with_ties else [])]
        if encoding == "pairs":
            chosen = [i for pair in compared for i in pair]
            places = [(start + 2 * n, start + 2 * n + 1) for n in range(len(compared))]
        else:
            chosen = list(range(len(comparison.examples)))
            places = [(start + a, start + b) for a, b in compared]
        flat.examples.extend(comparison.examples[i] for i in chosen)
        flat.origins.extend((number, i) for i in chosen)
        cut = len(comparison.pairs)
        flat.rankings.append(IndexedRanking(places[:cut], comparison.pair_count, places[cut:]))
    return flat
