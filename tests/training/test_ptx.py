"""PPO-ptx: the gradient is PPO's plus γ times that on text, with every reduction as its name says."""

from collections import Counter

import pytest
import torch

from training import corpus, ptx

CPU = torch.device("cpu")


@pytest.fixture
def text(tokenizer):
    documents = list(corpus.read_documents(None, 40, seed=1))
    return corpus.build(tokenizer, documents, row_tokens=200, valid_documents=4, on_too_long="raise", counts=Counter())


def settings(text, **fields):
    return ptx.Ptx(
        text, **({"coef": 0.7, "reduction": "token_mean", "rows_per_minibatch": 4, "parts": 1, "seed": 0} | fields)
    )


def gradients(model):
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def losses_by_hand(model, rows, chosen):
    """(−Σ log p, its tokens) of each row, each document by a forward pass of its own."""
    sums = []
    for row in chosen:
        total, tokens = 0.0, 0
        for segment in range(1, int(rows.segments_BT[row].max()) + 1):
            ids = rows.ids_BT[row][rows.segments_BT[row] == segment]
            logits = model(ids[None]).logits[0, :-1]
            total = total + torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum")
            tokens += len(ids) - 1
        sums.append((total, tokens))
    return sums


def test_the_combined_gradient_is_ppos_plus_gamma_times_that_on_text(policy, text):
    """PPO's stands for any gradient that is there already: a fixed random one, of which nothing may be lost."""
    generator = torch.Generator().manual_seed(0)
    first = [torch.randn(p.shape, generator=generator) for p in policy.parameters()]
    for parameter, gradient in zip(policy.parameters(), first, strict=True):
        parameter.grad = gradient.clone()
    figures = ptx.add_gradient(policy, settings(text), step=3, device=CPU)
    combined = gradients(policy)
    policy.zero_grad()
    ppo_only = torch.cat([gradient.flatten() for gradient in first])
    rows = settings(text).rows_at(3)
    sums = losses_by_hand(policy, text.train, rows)
    loss = sum(total for total, _ in sums) / sum(tokens for _, tokens in sums)
    loss.backward()
    torch.testing.assert_close(combined, ppo_only + 0.7 * gradients(policy), rtol=1e-5, atol=1e-6)
    assert figures["ptx_loss"] == pytest.approx(loss.item(), rel=1e-5), "the loss itself, without γ"
    assert figures["ptx_gradient_norm"] == pytest.approx(0.7 * gradients(policy).norm().item(), rel=1e-4)
    ratio = figures["ptx_gradient_norm"] / ppo_only.norm().item()
    assert figures["ptx_gradient_ratio"] == pytest.approx(ratio, rel=1e-5)


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_sum"])
def test_the_reduction_of_the_loss_on_text_is_the_one_named(reduction, policy, text):
    chosen = [0, 1, 2]
    got = ptx.backward(policy, text.train, chosen, 1.0, reduction, 1, CPU)
    sums = losses_by_hand(policy, text.train, chosen)
    total, tokens = (sum(column) for column in zip(*sums, strict=True))
    assert got == pytest.approx((total / (tokens if reduction == "token_mean" else len(chosen))).item(), rel=1e-5)


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_sum"])
def test_gradients_on_text_are_equal_for_one_part_and_four(reduction, policy, text):
    chosen = list(range(min(7, len(text.train.ids_BT))))
    filled = {int((text.train.segments_BT[row] > 0).sum()) for row in chosen}
    assert len(filled) > 2, "ragged"
    ptx.backward(policy, text.train, chosen, 1.0, reduction, 1, CPU)
    whole = gradients(policy)
    policy.zero_grad()
    ptx.backward(policy, text.train, chosen, 1.0, reduction, 4, CPU)
    torch.testing.assert_close(gradients(policy), whole, rtol=1e-4, atol=1e-5)


def test_without_a_ppo_gradient_there_is_no_ratio(policy, text):
    assert "ptx_gradient_ratio" not in ptx.add_gradient(policy, settings(text), step=0, device=CPU)
    assert ptx.gradient_norm(policy) > 0


def test_the_rows_of_a_step_need_no_cursor(text):
    first, again = settings(text).rows_at(5), settings(text).rows_at(5)
    assert first == again
    assert len(first) == 4
    assert settings(text).rows_at(6) != first
