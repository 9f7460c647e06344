"""Compiled layers give the eager gradients. The compiler's front and its autograd are tried; inductor would take a minute."""

import functools
import json

import pytest
import torch
from torch._dynamo.utils import counters

from training import compiling, models, ppo
from training.generation import sample_texts
from training.unembedding import loss_sum_at

pytestmark = pytest.mark.slow


@pytest.fixture
def compiled(base):
    policy = models.load_policy(base)
    compiling.compile_layers(policy, backend="aot_eager")
    yield policy
    forget()


def forget():
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


def test_ppo_compiled_has_the_figures_of_ppo(sft_model, reward_model, export, tmp_path, monkeypatch):
    """Packed rows and rows of one episode, with gradients and without, of four models; in one minibatch, and in two."""
    monkeypatch.setattr(compiling, "compile_layers", functools.partial(compiling.compile_layers, backend="aot_eager"))
    fields = {"policy": str(sft_model), "reward_model": str(reward_model), "export": str(export), "iterations": 2}
    fields |= {"episodes": 8, "prompt_tokens": 200, "response_tokens": 8, "learning_rate": 1e-3, "valid_episodes": 8}
    graphs = counters["stats"]["unique_graphs"]
    for minibatch in (4, 8):
        outs = {flag: str(tmp_path / f"{flag}-{minibatch}") for flag in (False, True)}
        eager, compiled = (
            ppo.run(ppo.Config(**fields, out=out, minibatch=minibatch, compile=flag)) for flag, out in outs.items()
        )
        logs = [
            [json.loads(row) for row in (folder / "training_log.jsonl").read_text().splitlines()]
            for folder in (eager, compiled)
        ]
        assert logs[1] == [pytest.approx(row, rel=1e-4, abs=1e-5) for row in logs[0]]
    assert counters["stats"]["unique_graphs"] > graphs
    forget()
