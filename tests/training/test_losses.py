"""Losses against numbers worked out by hand, and their reductions under accumulation."""

import math

import pytest
import torch

from training import data, losses, rankings, response_loss, rm, unembedding
from training.contract import read_export

UNLIMITED = data.LengthLimits(10_000, 10_000)


def log_sigmoid(x):
    return -math.log1p(math.exp(-x))


def test_ranking_loss_by_hand():
    """Two rankings: 3 responses in order 0 > 1 > 2, and 2 responses with 4 > 3."""
    rewards = torch.tensor([1.0, 0.5, -1.0, 0.2, 0.1])
    first = (log_sigmoid(0.5) + log_sigmoid(2.0) + log_sigmoid(1.5)) / 3
    second = log_sigmoid(-0.1) / 1
    loss = losses.ranking_loss(rewards, [([(0, 1), (0, 2), (1, 2)], 3), ([(4, 3)], 1)])
    assert loss.item() == pytest.approx(-(first + second) / 2, abs=1e-6)


def test_ties_make_no_pair_and_still_count_in_the_divisor():
    rewards = torch.tensor([1.0, 0.0, 0.0], requires_grad=True)
    pairs = data.pairs_of([[0], [1, 2]])
    loss = losses.ranking_loss(rewards, [(pairs, 3)])
    assert loss.item() == pytest.approx(-2 * log_sigmoid(1.0) / 3, abs=1e-6)


def test_tied_pairs_pull_their_rewards_together_by_hand():
    """Opt-in: 0 > 1 = 2, of three. A tie adds −½ · [log σ(d) + log σ(−d)] with the weight of any pair; least at d = 0."""
    rewards = torch.tensor([1.0, 0.5, -1.0], requires_grad=True)
    loss = losses.ranking_loss(rewards, [losses.IndexedRanking([(0, 1), (0, 2)], 3, [(1, 2)])])
    tie = (log_sigmoid(1.5) + log_sigmoid(-1.5)) / 2
    assert loss.item() == pytest.approx(-(log_sigmoid(0.5) + log_sigmoid(2.0) + tie) / 3, abs=1e-6)
    only_tied = losses.ranking_loss(torch.tensor([0.3, 0.3]), [losses.IndexedRanking([], 1, [(0, 1)])])
    assert only_tied.item() == pytest.approx(math.log(2), abs=1e-6)
    swapped = losses.ranking_loss(rewards, [losses.IndexedRanking([(0, 1), (0, 2)], 3, [(2, 1)])])
    assert swapped.item() == pytest.approx(loss.item(), abs=1e-6), "which of two equals comes first is no matter"


def test_temperature_is_in_the_logprobs():
    logits = torch.tensor([[[2.0, 0.0, -1.0]]])
    expected = torch.log_softmax(logits / 0.7, -1)[0, 0, 1]
    logprobs = unembedding.linear_token_logprobs(logits[0], torch.eye(3), torch.tensor([1]), temperature=0.7)
    assert logprobs.item() == pytest.approx(expected.item(), abs=1e-6)


def test_policy_loss_by_hand():
    """Ratios 1.5 (gain clipped at 1.2), 0.5 (loss not clipped: the worse counts), 1.0; a pad that would weigh much."""
    old = torch.log(torch.tensor([[0.2, 0.4, 0.3, 0.5]]))
    new = torch.log(torch.tensor([[0.3, 0.2, 0.3, 0.1]]))
    advantages = torch.tensor([[1.0, 1.0, -2.0, 99.0]])
    keep = torch.tensor([[True, True, True, False]])
    result = losses.policy_loss(new, old, advantages, keep, clip=0.2)
    assert result.loss.item() == pytest.approx((-1.2 - 0.5 + 2.0) / 3, abs=1e-5)
    assert result.clip_share.item() == pytest.approx(1 / 3)
    assert result.ratio.item() == pytest.approx(1.0, abs=1e-5)
    assert result.ratio_gap.item() == pytest.approx(1 / 3, abs=1e-5), "of ratios whose mean is 1"


def test_value_loss_by_hand():
    values, old, returns = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 3.0]]), torch.tensor([[2.0, 3.0]])
    keep = torch.tensor([[True, False]])
    assert losses.value_loss(values, old, returns, keep, clip=0.0).item() == pytest.approx(0.5)
    # clipped to 0.2: (0.2 - 2)^2 = 3.24 is the worse
    assert losses.value_loss(values, old, returns, keep, clip=0.2).item() == pytest.approx(1.62)


def gradients(model):
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_sft_gradients_are_equal_for_one_part_and_four_on_ragged_data(policy, tokenizer, export):
    from collections import Counter

    rows = data.read_demonstrations(read_export(export), "train", Counter())[:7]
    examples = data.encode_demonstrations(tokenizer, rows, UNLIMITED, Counter())
    assert len({example.response_tokens for example in examples}) > 2, "ragged"
    whole = response_loss.backward_mean(policy, examples, 1, tokenizer.pad_token_id, torch.device("cpu"))
    expected = gradients(policy)
    policy.zero_grad()
    split = response_loss.backward_mean(policy, examples, 4, tokenizer.pad_token_id, torch.device("cpu"))
    assert split.item() == pytest.approx(whole.item(), rel=1e-5)
    torch.testing.assert_close(gradients(policy), expected, rtol=1e-4, atol=1e-6)


def test_reward_gradients_are_equal_for_one_part_and_three_and_for_pairs_alone(reward_model, tokenizer, export):
    from collections import Counter

    from training import models

    model = models.load_reward_model(reward_model)
    comparisons = data.read_comparisons(
        read_export(export), tokenizer, "train", UNLIMITED, Counter(), for_training=True
    )[:5]
    runner = rankings.runner_for(model, "auto", tokenizer.pad_token_id)
    whole, _ = rm.backward_mean(runner, comparisons, 1)
    expected = gradients(model)
    model.zero_grad()
    split, _ = rm.backward_mean(runner, comparisons, 3)
    assert split == pytest.approx(whole, rel=1e-5)
    torch.testing.assert_close(gradients(model), expected, rtol=1e-4, atol=1e-6)
    model.zero_grad()
    alone = 0.0
    for comparison in comparisons:  # each pair by two forward passes of its own
        for w, l in comparison.pairs:
            better, worse = (rm.rewards_at_end(runner, [comparison.examples[i]]) for i in (w, l))
            loss = -torch.nn.functional.logsigmoid(better - worse).sum() / comparison.pair_count / len(comparisons)
            loss.backward()
            alone += loss.item()
    assert alone == pytest.approx(whole, rel=1e-5)
    torch.testing.assert_close(gradients(model), expected, rtol=1e-4, atol=1e-6)
