"""Episodes without padding: every figure equals that of each episode alone, by a forward pass of its own."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM

from training import data, episodes, generation, models

ASKS = [
    "Write a story about a fox.",
    "Hi",
    "Tell me where the owl lives, and what it eats, please.",
    "I want a story about some honey, a lamp, a mouse and the garden.",
    "What scares the hen?",
]


@pytest.fixture
def prompts(tokenizer):
    return [data.encode_prompt(tokenizer, [{"role": "user", "content": text}]) for text in ASKS]


@pytest.fixture(params=["llama", "gpt2", "eager", "window"])
def lively(tokenizer, request):
    """Rotary positions, which forgive a shift; learned ones, which do not; and two kinds that cannot share rows."""
    torch.manual_seed(5)
    if request.param in ("llama", "eager"):
        sizes = {"width": 32, "layers": 2, "heads": 2, "mlp_width": 64, "max_tokens": 256}
        model = models.new_model(tokenizer, **sizes, init_std=0.3).eval()
        model.set_attn_implementation("eager" if request.param == "eager" else "sdpa")
        return model
    if request.param == "window":
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
        config = MistralConfig(vocab_size=len(tokenizer), intermediate_size=64, sliding_window=8, **sizes)
        config.initializer_range = 0.3
        return MistralForCausalLM(config).eval()
    sizes = {"vocab_size": len(tokenizer), "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256}
    return GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.3)).eval()


@pytest.fixture
def rollout(lively, tokenizer, prompts):
    def draw(eos_id):
        return generation.sample(
            lively,
            prompts,
            eos_id=eos_id,
            pad_id=tokenizer.eos_token_id,  # pad is the end: nothing may be told by token
            max_new_tokens=12,
            temperature=0.7,
            generator=torch.Generator().manual_seed(3),
        )

    drawn = draw(draw(-1).responses_BR.flatten().mode().values.item())
    assert len(set(drawn.lengths_B.tolist())) > 1, "ragged"
    return drawn


def alone(prompts, rollout):
    """(row, ids of prompt and response, prompt tokens) of each episode."""
    for row, (prompt, response) in enumerate(zip(prompts, rollout.tokens(), strict=True)):
        yield row, torch.tensor([prompt + response]), len(prompt)


@pytest.mark.parametrize("widths", [[], [64], [128], None])
def test_the_tokens_scored_are_the_tokens_sampled(lively, rollout, prompts, widths):
    packed = episodes.pack(episodes.sequences_of(rollout), lively, widths=widths)
    scored = episodes.response_logprobs(lively, packed, 0.7)
    for row, ids, count in alone(prompts, rollout):
        logprobs = torch.log_softmax(lively(ids).logits[0, count - 1 : -1] / 0.7, -1)
        expected = logprobs.gather(1, ids[0, count:, None]).squeeze(1)
        torch.testing.assert_close(scored[row, : len(expected)], expected, rtol=1e-4, atol=1e-4)
    assert (scored[~rollout.response_keep_BR] == 0).all()
    padded = generation.response_logprobs(lively, *generation.sequence_of(rollout), rollout.responses_BR, 0.7)
    torch.testing.assert_close(scored, padded, rtol=1e-4, atol=1e-4)


def test_a_value_is_of_the_state_before_its_token_and_the_score_of_the_last(reward_model, rollout, prompts):
    critic = models.load_reward_model(reward_model)
    packed = episodes.pack(episodes.sequences_of(rollout))
    values, scores = episodes.response_values(critic, packed), episodes.last_scores(critic, packed)
    for row, ids, count in alone(prompts, rollout):
        keep = torch.ones_like(ids, dtype=torch.bool)
        states = models.token_scores(critic, ids, keep, torch.arange(ids.shape[1])[None])[0]
        torch.testing.assert_close(values[row, : len(states) - count], states[count - 1 : -1], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(scores[row], states[-1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scores, generation.end_scores(critic, rollout), rtol=1e-4, atol=1e-4)


def test_rows_hold_several_episodes_and_each_response_token_has_a_place_of_its_own(rollout, prompts):
    packed = episodes.pack(episodes.sequences_of(rollout))
    assert len(packed.ids_LC) < len(prompts)
    assert len(packed.slots_N) == int(rollout.lengths_B.sum()) == len(set(packed.slots_N.tolist()))
    ends = packed.ids_LC.flatten()[packed.ends_B].tolist()
    assert ends == [tokens[-1] for tokens in rollout.tokens()]


def test_models_that_cannot_keep_episodes_apart_get_rows_of_one(lively, rollout, prompts, request):
    packed = episodes.pack(episodes.sequences_of(rollout), lively)
    kind = request.node.callspec.params["lively"]
    assert (len(packed.ids_LC) == len(prompts)) == (kind in ("eager", "window"))
    assert (packed.mask_LC is None) == (kind in ("eager", "window"))


def test_gradients_reach_the_model_through_the_spreading(lively, rollout):
    packed = episodes.pack(episodes.sequences_of(rollout), lively)
    episodes.response_logprobs(lively, packed, 1.0).sum().backward()
    ours = torch.cat([p.grad.flatten() for p in lively.parameters()])
    lively.zero_grad()
    generation.response_logprobs(lively, *generation.sequence_of(rollout), rollout.responses_BR, 1.0).sum().backward()
    theirs = torch.cat([p.grad.flatten() for p in lively.parameters()])
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_rows_are_as_wide_as_costs_least():
    assert episodes.rows_for([48] * 6, [48, 96, 128]) == (48, [[n] for n in range(6)]), "equal ones gain nothing"
    assert episodes.rows_for([60, 30, 30, 30, 30, 10], [60, 75, 120]) == (75, [[0, 5], [1, 2], [3, 4]])
    assert episodes.rows_for([80, 30, 30, 20], [80, 100]) == (80, [[0], [1, 2, 3]])
    apart = (100, [[0], [1], [2]])
    assert episodes.rows_for([100, 90, 40], [140]) == apart, (
        "280 columns, not 300; but alone each attends to half a row"
    )
