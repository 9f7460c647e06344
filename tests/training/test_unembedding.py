"""Losses in chunks against the plain ones; models that change their logits; memory as the allocator counts it."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, GraniteConfig

from training import models, unembedding

N, H, V = 23, 8, 37


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(3)
    hidden, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((N, H), (V, H), (V,)))
    targets = torch.randint(0, V, (N,), generator=generator)
    factors = torch.rand(N, generator=generator)
    return [tensor.requires_grad_() for tensor in (hidden, weight, bias)], targets, factors


def gradients_of(value, tensors):
    return torch.autograd.grad(value, tensors)


@pytest.mark.parametrize("chunk", [1, 5, 23, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_chunked_logprobs_and_gradients_equal_the_plain_ones(inputs, chunk, temperature):
    (hidden, weight, bias), targets, factors = inputs
    plain = torch.log_softmax((hidden @ weight.T + bias) / temperature, -1)[torch.arange(N), targets]
    ours = unembedding.linear_token_logprobs(hidden, weight, targets, bias_V=bias, temperature=temperature, chunk=chunk)
    torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-6)
    expected = gradients_of((plain * factors).sum(), (hidden, weight, bias))
    actual = gradients_of((ours * factors).sum(), (hidden, weight, bias))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 5, 23, 100])
@pytest.mark.parametrize("weighted", [False, True])
def test_chunked_loss_and_gradients_equal_the_plain_ones(inputs, chunk, weighted):
    (hidden, weight, bias), targets, factors = inputs
    plain = F.cross_entropy(hidden @ weight.T + bias, targets, reduction="none")
    plain = (plain * factors).sum() if weighted else plain.sum()
    ours = unembedding.linear_loss_sum(
        hidden, weight, targets, bias_V=bias, weight_N=factors if weighted else None, chunk=chunk
    )
    torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-6)
    expected = gradients_of(plain / 7, (hidden, weight, bias))
    torch.testing.assert_close(gradients_of(ours / 7, (hidden, weight, bias)), expected, rtol=1e-5, atol=1e-6)


def test_no_token_gives_loss_nought_and_gradients_nought(inputs):
    (hidden, weight, _), targets, _ = inputs
    loss = unembedding.linear_loss_sum(hidden[:0], weight, targets[:0])
    assert loss.item() == 0
    assert gradients_of(loss, weight)[0].abs().sum() == 0


def test_a_frozen_unembedding_gets_no_gradient(inputs):
    (hidden, weight, _), targets, _ = inputs
    loss = unembedding.linear_loss_sum(hidden, weight.detach(), targets)
    expected = gradients_of(F.cross_entropy(hidden @ weight.detach().T, targets, reduction="sum"), hidden)
    torch.testing.assert_close(gradients_of(loss, hidden), expected, rtol=1e-5, atol=1e-6)


def test_under_autocast_the_dtype_is_a_linear_layers(inputs):
    (hidden, weight, _), targets, _ = inputs
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = torch.log_softmax(F.linear(hidden, weight).float(), -1)[torch.arange(N), targets]
        ours = unembedding.linear_token_logprobs(hidden, weight, targets)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
    expected = gradients_of(plain.sum(), weight)
    torch.testing.assert_close(gradients_of(ours.sum(), weight), expected, rtol=0.05, atol=0.05)


SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
FAMILIES = {
    "gpt2": (GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50, n_positions=32), True),
    "gemma2": (Gemma2Config(**SIZES, intermediate_size=32, vocab_size=50, head_dim=8, query_pre_attn_scalar=8), False),
    "granite": (GraniteConfig(**SIZES, intermediate_size=32, vocab_size=50, logits_scaling=8.0), False),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_capped_and_scaled_logits_are_taken_from_the_model_itself(family):
    config, is_plain = FAMILIES[family]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(30)  # so that a cap or a scale shows
    assert (unembedding.unembedding_of(model) is not None) == is_plain
    ids = torch.randint(5, 50, (2, 9))
    keep = torch.ones_like(ids, dtype=torch.bool)
    positions = models.positions_of(keep)
    labels, wanted = ids.roll(-1, 1), keep.clone()
    wanted[:, -1] = False
    plain = torch.log_softmax(model(ids).logits / 0.7, -1).gather(2, labels[..., None]).squeeze(2)[wanted]
    ours = unembedding.logprobs_at(model, ids, keep, positions, labels, wanted, temperature=0.7)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
    loss = unembedding.loss_sum_at(model, ids, keep, positions, labels, wanted)
    expected = F.cross_entropy(model(ids).logits[wanted], labels[wanted], reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)


def largest_tensor(work) -> int:
    """Entries of the largest tensor that any operation inside `work` makes, forward and backward."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Watch(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
            self.largest = max(self.largest, *sizes, 0)
            return result

    with Watch() as watch:
        work()
    return watch.largest


def test_logits_of_all_tokens_are_never_held():
    hidden, weight = torch.randn(512, 8, requires_grad=True), torch.randn(1000, 8, requires_grad=True)
    targets = torch.randint(0, 1000, (512,))
    plain = largest_tensor(lambda: F.cross_entropy(hidden @ weight.T, targets, reduction="sum").backward())
    assert plain >= 512 * 1000
    for function in (unembedding.linear_loss_sum, unembedding.linear_token_logprobs):
        chunked = largest_tensor(lambda f=function: f(hidden, weight, targets, chunk=16).sum().backward())
        assert chunked <= 16 * 1000, function
