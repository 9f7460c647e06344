"""Rewards, GAE, whitening and KL against numbers worked out by hand; padding changes nothing."""

import pytest
import torch

from training import advantages

KEEP = torch.tensor([[True, True, True, False], [True, False, False, False]])


def test_token_rewards_by_hand():
    scores = torch.tensor([2.0, -1.0])
    logprobs = torch.tensor([[-1.0, -2.0, -0.5, 7.0], [-0.3, 7.0, 7.0, 7.0]])
    reference = torch.tensor([[-1.5, -1.0, -0.5, -7.0], [-0.1, -7.0, -7.0, -7.0]])
    rewards = advantages.token_rewards(scores, logprobs, reference, KEEP, kl_coef=0.1)
    torch.testing.assert_close(rewards, torch.tensor([[-0.05, 0.1, 2.0, 0.0], [-0.98, 0.0, 0.0, 0.0]]))


def test_a_row_without_tokens_has_nowhere_to_put_its_score():
    empty = torch.zeros(2, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="row 0 keeps no token"):
        advantages.token_rewards(torch.zeros(2), torch.zeros(2, 4), torch.zeros(2, 4), empty, 0.1)


def test_gae_by_hand():
    """Discount 0.9, λ 0.5. Row 0: rewards 1, 0, 2, values 0.5, 1, 1.5, and a pad whose value must not leak."""
    rewards = torch.tensor([[1.0, 0.0, 2.0, 0.0], [3.0, 0.0, 0.0, 0.0]])
    values = torch.tensor([[0.5, 1.0, 1.5, 50.0], [1.0, 50.0, 50.0, 50.0]])
    a2 = 2.0 - 1.5
    a1 = (0.0 + 0.9 * 1.5 - 1.0) + 0.45 * a2
    a0 = (1.0 + 0.9 * 1.0 - 0.5) + 0.45 * a1
    got, returns = advantages.gae(rewards, values, KEEP, discount=0.9, gae_lambda=0.5)
    torch.testing.assert_close(got, torch.tensor([[a0, a1, a2, 0.0], [2.0, 0.0, 0.0, 0.0]]))
    torch.testing.assert_close(returns, torch.tensor([[a0 + 0.5, a1 + 1.0, 2.0, 0.0], [3.0, 0.0, 0.0, 0.0]]))


def test_whitening_reads_kept_tokens_only():
    values = torch.tensor([[1.0, 2.0, 3.0, 1e6], [4.0, -1e6, 0.0, 0.0]])
    white = advantages.whiten(values, KEEP)
    kept = torch.tensor([1.0, 2.0, 3.0, 4.0])
    expected = (kept - 2.5) / kept.std(correction=0)
    torch.testing.assert_close(white[KEEP], expected)
    assert (white[~KEEP] == 0).all()
    scaled = advantages.whiten(values, KEEP, shift_mean=False)
    torch.testing.assert_close(scaled[KEEP], expected + 2.5)


def test_more_padding_changes_nothing():
    def everything(columns):
        generator = torch.Generator().manual_seed(0)
        drawn = [torch.randn(2, 4, generator=generator) for _ in range(3)]
        pad = [torch.nn.functional.pad(tensor, (0, columns), value=9.0) for tensor in drawn]
        keep = torch.nn.functional.pad(KEEP, (0, columns))
        rewards = advantages.token_rewards(torch.tensor([1.0, 2.0]), pad[0], pad[1], keep, 0.1)
        got, returns = advantages.gae(rewards, pad[2], keep, discount=1.0, gae_lambda=0.95)
        return torch.stack([rewards, advantages.whiten(got, keep), returns])[:, :, :4]

    torch.testing.assert_close(everything(0), everything(5), rtol=0, atol=0)


@pytest.mark.parametrize(("mode", "expected"), [("replace", [1.5, -3.0]), ("subtract", [1.5, -1.0])])
def test_the_penalty_for_no_eos_is_explicit(mode, expected):
    scores, finished = torch.tensor([1.5, 2.0]), torch.tensor([True, False])
    assert advantages.shape_scores(scores, finished, 3.0, mode).tolist() == expected


def test_kl_estimators_are_zero_for_equal_policies():
    logprobs = torch.randn(2, 4)
    for kind in ("k1", "k2", "k3"):
        assert (advantages.kl_estimates(logprobs, logprobs, KEEP, kind) == 0).all()


def test_kl_estimators_equal_the_exact_kl_in_expectation():
    """Over a vocabulary of five: k1 and k3 are unbiased, k2 is not; k1 may be negative, the others never are."""
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.softmax(torch.randn(5, generator=generator), 0) for _ in range(2))
    exact = (p * (p / q).log()).sum()
    each = {
        kind: advantages.kl_estimates(p.log()[:, None], q.log()[:, None], torch.ones(5, 1, dtype=torch.bool), kind)
        for kind in ("k1", "k2", "k3")
    }
    torch.testing.assert_close((p * each["k1"]).sum(), exact)
    torch.testing.assert_close((p * each["k3"]).sum(), exact)
    assert each["k1"].min() < 0 <= min(each["k2"].min(), each["k3"].min())
