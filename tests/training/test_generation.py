"""Sampling: padding changes nothing, nothing is forced, and what is scored is what was sampled."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from training import data, generation, models, ppo, ppo_checks, ppo_gradients
from training.experience import gain_experience
from training.players import Players

ASKS = ["Write a story about a fox.", "Hi", "Tell me where the owl lives, and what it eats, please."]


@pytest.fixture
def prompts(tokenizer):
    return [data.encode_prompt(tokenizer, [{"role": "user", "content": text}]) for text in ASKS]


@pytest.fixture
def lively(tokenizer):
    """A model with large random weights, so that its distribution is far from flat."""
    torch.manual_seed(5)
    return models.new_model(tokenizer, width=32, layers=2, heads=2, mlp_width=64, max_tokens=256, init_std=0.3).eval()


def sample(model, tokenizer, prompts, seed=0, temperature=1.0, limit=12, eos_id=None):
    return generation.sample(
        model,
        prompts,
        eos_id=tokenizer.eos_token_id if eos_id is None else eos_id,
        pad_id=tokenizer.pad_token_id,
        max_new_tokens=limit,
        temperature=temperature,
        generator=torch.Generator().manual_seed(seed),
    )


def test_left_padding_changes_no_logprob(lively, tokenizer, prompts):
    rollout = sample(lively, tokenizer, prompts)
    expected = generation.response_logprobs(lively, *generation.sequence_of(rollout), rollout.responses_BR, 1.0)
    for pads in (1, 16):
        wider = rollout._replace(
            prompts_BP=torch.nn.functional.pad(rollout.prompts_BP, (pads, 0), value=tokenizer.pad_token_id),
            prompt_keep_BP=torch.nn.functional.pad(rollout.prompt_keep_BP, (pads, 0), value=False),
        )
        got = generation.response_logprobs(lively, *generation.sequence_of(wider), rollout.responses_BR, 1.0)
        keep = rollout.response_keep_BR
        torch.testing.assert_close(got[keep], expected[keep], rtol=1e-4, atol=1e-5)


def test_left_padding_changes_nothing_for_a_model_with_absolute_positions(tokenizer, prompts):
    """Rotary positions forgive a shift; GPT-2's learned ones do not."""
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128}
    gpt2 = GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.3)).eval()
    together = sample(gpt2, tokenizer, prompts, temperature=0.0)
    scored = generation.response_logprobs(gpt2, *generation.sequence_of(together), together.responses_BR, 1.0)
    for row, prompt in enumerate(prompts):
        alone = sample(gpt2, tokenizer, [prompt], temperature=0.0)
        assert alone.tokens()[0] == together.tokens()[row]
        logits = gpt2(torch.tensor([prompt + alone.tokens()[0]])).logits[0, len(prompt) - 1 : -1]
        expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(alone.tokens()[0])[:, None])[:, 0]
        torch.testing.assert_close(scored[row, : len(expected)], expected, rtol=1e-4, atol=1e-4)


def test_the_likeliest_tokens_equal_those_of_generate(lively, tokenizer, prompts):
    rollout = sample(lively, tokenizer, prompts, temperature=0.0)
    for prompt, got in zip(prompts, rollout.tokens(), strict=True):
        ids = lively.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, len(prompt) :].tolist()
        assert got == ids


def test_logprobs_of_a_batch_equal_those_of_one_row_alone(lively, tokenizer, prompts):
    """With the cache, with rows leaving the batch, and at a temperature: the tokens scored are the tokens sampled."""
    common = sample(lively, tokenizer, prompts, seed=3).responses_BR.flatten().mode().values.item()
    rollout = sample(lively, tokenizer, prompts * 4, seed=3, temperature=0.7, eos_id=common, limit=24)
    assert len(set(rollout.lengths_B.tolist())) > 1, "rows end at different lengths, so some left the batch"
    together = generation.response_logprobs(lively, *generation.sequence_of(rollout), rollout.responses_BR, 0.7)
    for row, (prompt, response) in enumerate(zip(prompts * 4, rollout.tokens(), strict=True)):
        logits = lively(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1] / 0.7
        alone = torch.log_softmax(logits, -1).gather(1, torch.tensor(response)[:, None])[:, 0]
        torch.testing.assert_close(together[row, : len(response)], alone, rtol=1e-4, atol=1e-4)


def test_tokens_are_drawn_from_the_distribution_at_its_temperature():
    logits = torch.tensor([0.0, 1.0, 2.0])
    uniforms = torch.rand(40_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens, logprobs = generation.draw(logits.expand(40_000, 3), uniforms, 0.7)
    shares = torch.bincount(tokens, minlength=3) / 40_000
    torch.testing.assert_close(shares, torch.softmax(logits / 0.7, 0), atol=0.01, rtol=0)
    torch.testing.assert_close(logprobs, torch.log_softmax(logits / 0.7, 0)[tokens])


def test_logprobs_told_while_sampling_are_those_of_the_tokens_sampled(lively, tokenizer, prompts):
    """Also of rows that go on after others have left the batch."""
    free = sample(lively, tokenizer, prompts * 4, seed=3, temperature=0.7, eos_id=-1, limit=24)
    common = free.responses_BR.flatten().mode().values.item()
    rollout = sample(lively, tokenizer, prompts * 4, seed=3, temperature=0.7, eos_id=common, limit=24)
    assert len(set(rollout.lengths_B.tolist())) > 2
    inputs = (*generation.sequence_of(rollout), rollout.responses_BR)
    scored = generation.response_logprobs(lively, *inputs, 0.7)
    torch.testing.assert_close(rollout.logprobs_BR, scored, rtol=1e-4, atol=1e-4)
    assert (rollout.logprobs_BR[~rollout.response_keep_BR] == 0).all()


def test_truncation_is_a_flag_and_changes_no_token(lively, tokenizer, prompts):
    long, short = (sample(lively, tokenizer, prompts, eos_id=-1, limit=n) for n in (12, 5))
    assert long.finish_reasons() == ["length"] * 3
    assert short.lengths_B.tolist() == [5, 5, 5]
    assert torch.equal(short.responses_BR, long.responses_BR[:, :5]), "the same tokens, only fewer"


def test_the_end_is_kept_counted_and_told_by_length(lively, tokenizer, prompts):
    free = sample(lively, tokenizer, prompts, eos_id=-1)
    end = free.responses_BR[0, 4].item()
    first = free.responses_BR[0].tolist().index(end)
    rollout = sample(lively, tokenizer, prompts, eos_id=end)
    assert rollout.lengths_B[0] == first + 1
    assert rollout.tokens()[0] == free.responses_BR[0, : first + 1].tolist()
    assert rollout.finish_reasons()[0] == "stop"


def test_a_seed_gives_the_same_text_whatever_the_other_rows_do(lively, tokenizer, prompts):
    rollout = sample(lively, tokenizer, prompts, seed=1)
    other_end = rollout.responses_BR[1, 2].item()
    again = sample(lively, tokenizer, prompts, seed=1, eos_id=other_end)
    for before, after in zip(rollout.tokens(), again.tokens(), strict=True):
        assert after == before[: len(after)]
    assert sample(lively, tokenizer, prompts, seed=2).tokens() != rollout.tokens()


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_the_first_ratio_is_one_and_the_first_kl_zero(lively, reward_model, tokenizer, prompts, temperature):
    import copy

    judge = models.load_reward_model(reward_model)
    players = Players(lively, copy.deepcopy(judge), copy.deepcopy(lively), judge, tokenizer)
    fields = {"out": "x", "policy": "x", "reward_model": "x", "export": "x"}
    config = ppo.Config(**fields, episodes=4, minibatch=4, temperature=temperature, response_tokens=12)
    rollout = ppo.respond(config, players, prompts, torch.Generator().manual_seed(0))
    experience, stats = gain_experience(players, rollout, config.shaping(config.kl_coef))
    ppo_checks.check_kl_is_zero(stats)
    losses = ppo_gradients.backward_losses(config, players, experience)
    ppo_checks.check_ratio_is_one(losses, 0)
    assert losses["ratio"] == pytest.approx(1.0, abs=1e-3)
    wrong = ppo.Config(**fields, episodes=4, minibatch=4, temperature=temperature + 0.5, response_tokens=12)
    with pytest.raises(ppo_checks.PpoCheckError, match="ratio"):
        ppo_checks.check_ratio_is_one(ppo_gradients.backward_losses(wrong, players, experience), 0)


def test_rollouts_are_sampled_at_the_temperature_of_the_run(lively, reward_model, tokenizer, prompts):
    judge = models.load_reward_model(reward_model)
    players = Players(lively, judge, lively, judge, tokenizer)
    fields = {"out": "x", "policy": "x", "reward_model": "x", "export": "x", "response_tokens": 12}
    cold = ppo.respond(ppo.Config(**fields, temperature=1e-4), players, prompts, torch.Generator().manual_seed(0))
    assert cold.tokens() == sample(lively, tokenizer, prompts, temperature=0.0).tokens()


def test_a_policy_that_is_not_its_reference_is_caught_before_the_first_step():
    with pytest.raises(ppo_checks.PpoCheckError, match="before the first step"):
        ppo_checks.check_kl_is_zero({"kl": 0.3, "kl_k3": 0.1})


def test_two_forward_passes_of_the_players_are_bit_equal(base, reward_model, tokenizer, prompts, export):
    fields = {"out": "x", "policy": str(base), "reward_model": str(reward_model), "export": str(export)}
    config = ppo.Config(**fields, episodes=4, minibatch=4, response_tokens=8)
    players = ppo.load_players(config, torch.device("cpu"))
    assert not any(player.training for player in players[:4]), "dropout is off"
    rollout = ppo.respond(config, players, prompts, torch.Generator().manual_seed(0))
    inputs = (*generation.sequence_of(rollout), rollout.responses_BR)
    for model in (players.policy, players.reference):
        first, second = (generation.response_logprobs(model, *inputs, 1.0) for _ in range(2))
        assert torch.equal(first, second)
