"""Compiled layers give the eager gradients. The compiler's front and its autograd are tried; inductor would take a minute."""

import pytest
import torch
from torch._dynamo.utils import counters

from training import compiling, models
from training.generation import sample_texts
from training.unembedding import loss_sum_at

pytestmark = pytest.mark.slow


@pytest.fixture
def compiled(base):
    policy = models.load_policy(base)
    compiling.compile_layers(policy, backend="aot_eager")
    yield policy
    compiling._is_used = False
    torch.compiler.reset()


def gradients(policy, rows, tokens):
    policy.zero_grad()
    ids_BT = torch.randint(5, 300, (rows, tokens), generator=torch.Generator().manual_seed(0))
    keep_BT = torch.ones_like(ids_BT, dtype=torch.bool)
    loss_sum_at(policy, ids_BT, None, None, ids_BT.roll(-1, 1), keep_BT).backward()
    return torch.cat([p.grad.flatten() for p in policy.parameters()])


def test_layers_run_compiled_for_any_shape_and_sampling_stays_eager(compiled, policy, tokenizer):
    for shape in ((3, 20), (2, 33), (5, 17)):
        expected = gradients(policy, *shape)
        assert (gradients(compiled, *shape) - expected).abs().max() < 1e-5 * expected.abs().max()
    graphs = counters["stats"]["unique_graphs"]
    assert 0 < graphs <= 2 * len(compiling.layers_of(compiled)), "once for the first shape, once for all others"
    texts = [
        sample_texts(model, tokenizer, [[5, 6, 7]], max_new_tokens=4, temperature=1.0, seed=0)[0]
        for model in (policy, compiled)
    ]
    assert texts[0] == texts[1]
    assert counters["stats"]["unique_graphs"] == graphs
