"""Experience in parts and passes: what is trained on does not depend on how the work is split."""

import copy

import pytest
import torch

from training import data, experience, generation, models, ppo, ppo_gradients
from training.players import Players

ASKS = [
    "Write a story about a fox.",
    "Hi",
    "Tell me where the owl lives, and what it eats, please.",
    "A bear?",
    "I want a story about some honey, a lamp, a mouse and the garden.",
    "What scares the hen?",
]
FIELDS = {"out": "x", "policy": "x", "reward_model": "x", "export": "x", "response_tokens": 16}


@pytest.fixture
def players(tokenizer, reward_model):
    torch.manual_seed(5)
    lively = models.new_model(tokenizer, width=32, layers=2, heads=2, mlp_width=64, max_tokens=256, init_std=0.3).eval()
    other = copy.deepcopy(lively)
    with torch.no_grad():
        next(other.parameters()).mul_(1.05)  # a reference that differs, so that there is a KL
    judge = models.load_reward_model(reward_model)
    return Players(lively, copy.deepcopy(judge), other, judge, tokenizer)


@pytest.fixture
def rollout(players, tokenizer):
    """Six ragged episodes: prompts and responses of different lengths, some ended and some cut off."""
    prompts = [data.encode_prompt(tokenizer, [{"role": "user", "content": text}]) for text in ASKS]

    def draw(eos_id):
        return generation.sample(
            players.policy,
            prompts,
            eos_id=eos_id,
            pad_id=tokenizer.pad_token_id,
            max_new_tokens=16,
            temperature=1.0,
            generator=torch.Generator().manual_seed(3),
        )

    common = draw(-1).responses_BR.flatten().mode().values.item()
    drawn = draw(common)
    assert len(set(drawn.lengths_B.tolist())) > 2, "ragged"
    assert 0 < drawn.finished_B.sum() < len(prompts), "some ended and some were cut off"
    return drawn


def config(**fields):
    return ppo.Config(**(FIELDS | {"episodes": 6, "minibatch": 6, "learning_rate": 1e-3} | fields))


def gain(players, rollout, rows_per_pass=None):
    return experience.gain_experience(players, rollout, config().shaping(0.05), rows_per_pass)


def gradients(model):
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("parts", [2, 4])
def test_ppo_gradients_are_equal_for_one_part_and_four_on_ragged_minibatches(players, rollout, parts):
    gained, _ = gain(players, rollout)
    gained = gained._replace(
        logprobs_BR=gained.logprobs_BR + 0.3 * torch.sin(torch.arange(gained.logprobs_BR.shape[1]))
    )
    whole = ppo_gradients.backward_losses(config(), players, gained)
    expected = [gradients(model) for model in players[:2]]
    assert 0 < whole["clip_share"] < 1
    for model in players[:2]:
        model.zero_grad()
    split = ppo_gradients.backward_losses(config(parts=parts), players, gained)
    assert split == pytest.approx(whole, rel=1e-4)
    for model, gradient in zip(players[:2], expected, strict=True):
        torch.testing.assert_close(gradients(model), gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 4])
def test_scoring_in_passes_changes_nothing_that_is_kept(players, rollout, rows):
    whole, stats = gain(players, rollout)
    split, split_stats = gain(players, rollout, rows)
    keep = rollout.response_keep_BR
    for name in ("logprobs_BR", "values_BR", "advantages_BR", "returns_BR"):
        torch.testing.assert_close(getattr(split, name)[keep], getattr(whole, name)[keep], rtol=1e-3, atol=1e-4)
    assert split_stats == pytest.approx(stats, rel=1e-3, abs=1e-4)
    assert stats["kl"] != 0


def test_values_with_their_graph_train_the_critic_as_a_pass_of_its_own_does(players, rollout):
    apart, _ = gain(players, rollout)
    losses = ppo_gradients.backward_losses(config(), players, apart)
    expected = [gradients(model) for model in players[:2]]
    for model in players[:2]:
        model.zero_grad()
    kept, _ = experience.gain_experience(players, rollout, config().shaping(0.05), keep_graph=True)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    again = ppo_gradients.backward_losses(config(), players, experience.rows_of(kept, order))
    assert again == pytest.approx(losses, rel=1e-5, abs=1e-6)
    assert losses["value_loss"] > 0.01
    for model, gradient in zip(players[:2], expected, strict=True):
        torch.testing.assert_close(gradients(model), gradient, rtol=1e-4, atol=1e-6)


def test_the_penalty_for_no_eos_reaches_the_rewards_and_no_token_changes(players, rollout):
    free = config(no_eos_penalty=0.0, no_eos_mode="subtract")
    harsh = config(no_eos_penalty=5.0, no_eos_mode="subtract")
    before = rollout.responses_BR.clone()
    _, mild = experience.gain_experience(players, rollout, free.shaping(0.0))
    _, hard = experience.gain_experience(players, rollout, harsh.shaping(0.0))
    unfinished = 1 - rollout.finished_B.float().mean().item()
    assert hard["score"] == pytest.approx(mild["score"] - 5.0 * unfinished, abs=1e-5)
    assert hard["reward"] == mild["reward"], "what the reward model said stays beside it"
    _, replaced = experience.gain_experience(players, rollout, config(no_eos_penalty=5.0).shaping(0.0))
    finished = generation.end_scores(players.reward_model, rollout)[rollout.finished_B]
    assert replaced["score"] == pytest.approx((finished.sum().item() - 5.0 * 6 * unfinished) / 6, abs=1e-4)
    assert torch.equal(rollout.responses_BR, before)
