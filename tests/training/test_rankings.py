"""Three encodings of a ranking, one result: rewards, loss and gradients, whatever K, lengths, ties and architecture."""

import random

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForSequenceClassification,
    Qwen3Config,
    Qwen3ForSequenceClassification,
)

from training import rankings
from training.data import Comparison, Example, pairs_of, ties_of
from training.errors import StageError
from training.losses import ranking_loss
from training.rm import rewards_of

SIZE = {"vocab_size": 60, "num_labels": 1, "pad_token_id": 0}
LLAMA = SIZE | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
PAD = 0


def reward_model(name: str):
    torch.manual_seed(0)
    model = {
        "llama": lambda: LlamaForSequenceClassification(LlamaConfig(**LLAMA)),
        "qwen3": lambda: Qwen3ForSequenceClassification(Qwen3Config(**LLAMA)),
        "gpt2": lambda: GPT2ForSequenceClassification(
            GPT2Config(**SIZE, n_embd=32, n_layer=2, n_head=4, n_positions=80)
        ),
        "mistral": lambda: MistralForSequenceClassification(MistralConfig(**LLAMA, sliding_window=8)),
    }[name]()
    model.config.reward_bias = 0.25
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def ranking(k: int, seed: int, prompt_tokens: int, longest: int) -> Comparison:
    """K responses of unlike length, the shortest empty, the last two identical, in tiers with ties. Pad (= EOS) is inside."""
    rng = random.Random(seed)
    prompt = [rng.randrange(60) for _ in range(prompt_tokens)]
    bodies = [[rng.randrange(60) for _ in range(rng.randint(1, longest))] for _ in range(k)]
    bodies[0] = []
    if k > 3:
        bodies[-1] = bodies[-2]
    tiers: list[list[int]] = []
    for i in rng.sample(range(k), k):
        if tiers and rng.random() < 0.3:
            tiers[-1].append(i)
        else:
            tiers.append([i])
    examples = [Example(prompt + body, prompt_tokens) for body in bodies]
    return Comparison(
        examples, pairs_of(tiers), k * (k - 1) // 2, [None] * k, "training", None, ties_of(tiers), "labeler"
    )


@pytest.fixture(scope="module")
def batch():
    """A ranking for each K from 2 to 12, prompts of 1 to 31 tokens; and one prompt ranked by two labelers."""
    made = [ranking(k, seed=k, prompt_tokens=[1, 31, 7, 12, 3][k % 5], longest=3 * k) for k in range(2, 13)]
    return [*made, ranking(5, seed=5, prompt_tokens=1, longest=15)]


def outcome(model, batch, encoding, ties=False):
    """(reward of each response, loss, gradients) under an encoding."""
    model.zero_grad()
    rewards_N, indexed = rewards_of(rankings.Runner(model, encoding, PAD), batch, with_ties=ties)
    loss = ranking_loss(rewards_N, indexed)
    loss.backward()
    gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return rewards_N.detach(), loss.item(), gradients, indexed


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
def test_shared_prefix_equals_one_pass_per_response_and_all_pairs(name, ties, batch):
    model = reward_model(name)
    rewards, loss, gradients, indexed = outcome(model, batch, "responses", ties)
    for encoding in ("shared", "auto", "pairs"):
        others, other_loss, other_gradients, other_indexed = outcome(model, batch, encoding, ties)
        assert other_loss == pytest.approx(loss, abs=1e-5)
        assert (other_gradients - gradients).norm() < 1e-4 * gradients.norm()
        torch.testing.assert_close(other_gradients, gradients, rtol=1e-3, atol=1e-4 * float(gradients.abs().max()))
        for ours, theirs in zip(indexed, other_indexed, strict=True):
            for mine, other in ((ours.pairs, theirs.pairs), (ours.ties, theirs.ties)):
                if mine:
                    torch.testing.assert_close(
                        others[torch.tensor(other)], rewards[torch.tensor(mine)], rtol=0, atol=1e-5
                    )


def test_each_response_is_read_at_its_own_last_token_alone(batch):
    """Against one response at a time through transformers' own forward: no padding, no neighbour, no group."""
    model = reward_model("llama")
    for encoding in ("shared", "responses"):
        runner = rankings.Runner(model, encoding, PAD)
        rewards, _ = rewards_of(runner, batch)
        alone = [
            model.score(model.model(torch.tensor([e.ids])).last_hidden_state)[0, -1, 0] + 0.25
            for comparison in batch
            for e in comparison.examples
        ]
        torch.testing.assert_close(rewards, torch.stack(alone), rtol=0, atol=1e-5)


def test_shared_runs_the_prompt_once_and_identical_responses_once(monkeypatch):
    model = reward_model("llama")
    prompt, bodies = list(range(1, 21)), [[5], [6, 7], [6, 7], [8]]
    examples = [Example(prompt + body, 20) for body in bodies]
    seen = []
    forward = model.model.forward
    monkeypatch.setattr(
        model.model, "forward", lambda ids, **given: (seen.append(ids.numel()), forward(ids, **given))[1]
    )
    rankings.Runner(model, "shared", PAD).last_hidden(examples)
    assert seen == [19, 3 * 3], "19 tokens of the prompt; three responses of at most 2 tokens after the prompt's last"


def test_sharing_pays_with_long_prompts_and_not_with_short_ones():
    model = reward_model("llama")
    assert rankings.sharing_pays(model, 128, [32] * 4)
    assert not rankings.sharing_pays(model, 4, [60] * 4)
    assert not rankings.sharing_pays(model, 8, [200] * 4)
    assert not rankings.sharing_pays(model, 128, [32])


def test_what_ran_is_told_and_not_what_was_asked():
    model = reward_model("llama")

    def ranking(prompt, responses):
        examples = [Example([*range(1, prompt + 1), *response], prompt) for response in responses]
        return Comparison(examples, [(0, 1)], 1, [None] * len(examples), "training", None)

    long, short = ranking(40, [[5, 6], [7, 8]]), ranking(2, [[*range(40)], [*range(1, 41)]])
    alike = ranking(40, [[5, 6]] * 4)  # one response, four times: nothing to share

    def told(encoding, *comparisons):
        return rankings.what_runs(rankings.Runner(model, encoding, PAD), comparisons)

    assert told("auto", long, long) == {"encoding": "shared"}
    assert told("auto", short, alike) == {"encoding": "responses"}
    assert told("auto", short, long, alike) == {"encoding": "mixed", "rankings_shared": 1}
    assert told("pairs", long) == {"encoding": "pairs"}


def test_an_architecture_that_cannot_share_is_refused_with_the_reason(monkeypatch):
    mistral = reward_model("mistral")
    assert rankings.runner_for(mistral, "auto", PAD).encoding == "responses"
    with pytest.raises(StageError, match=r"encoding shared: mistral .* sliding"):
        rankings.runner_for(mistral, "shared", PAD)
    llama = reward_model("llama")
    assert rankings.runner_for(llama, "shared", PAD).encoding == "shared"
    forward = llama.model.forward
    # as an architecture that counts positions by itself: padding within the cached prompt would move what follows
    monkeypatch.setattr(
        llama.model, "forward", lambda *given, **named: forward(*given, **named | {"position_ids": None})
    )
    assert rankings.why_not_shared(llama, PAD) == "llama gives other hidden states after a cached prompt"
    monkeypatch.setattr(llama.model, "forward", lambda ids, attention_mask, position_ids, use_cache: forward(ids))
    assert "takes no cached prompt (TypeError" in rankings.why_not_shared(llama, PAD)


def test_a_learned_prefix_is_refused_and_not_left_out():
    from peft import PrefixTuningConfig, TaskType, get_peft_model

    tuned = get_peft_model(reward_model("llama"), PrefixTuningConfig(task_type=TaskType.SEQ_CLS, num_virtual_tokens=3))
    with pytest.raises(StageError, match="PREFIX_TUNING: rankings run through the model's body"):
        rankings.runner_for(tuned, "responses", PAD)


def test_groups_hold_everything_once_with_little_padding():
    rng = random.Random(0)
    lengths = [rng.randint(1, 300) for _ in range(400)]
    groups = rankings.groups_by_length(lengths)
    assert sorted(i for group in groups for i in group) == list(range(400))
    padded = sum(max(lengths[i] for i in group) * len(group) for group in groups)
    assert padded < 1.15 * sum(lengths)
    assert all(max(lengths[i] for i in group) * len(group) <= rankings.GROUP_TOKENS for group in groups)
    assert rankings.groups_by_length([]) == []


def test_pad_equal_to_eos_changes_no_reward():
    """A finished and a truncated response, where every pad is an EOS: found by length, their rewards differ and stay."""
    model, eos = reward_model("llama"), 7
    prompt = [4, 9, 12, 3, 5, 6]
    examples = [Example(prompt + tail, 6) for tail in ([8, 5, eos], [8, 5], [8, 5, 2, 3, 4, 5, eos])]
    outcomes = [
        rankings.Runner(model, encoding, pad).last_hidden(examples)
        for encoding in ("pairs", "responses", "shared")
        for pad in (PAD, eos)
    ]
    assert (outcomes[0][0] - outcomes[0][1]).abs().max() > 0.01, "EOS is read"
    for other in outcomes[1:]:
        torch.testing.assert_close(other, outcomes[0], rtol=0, atol=1e-5)
