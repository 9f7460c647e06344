"""bf16: products in bfloat16, everything that sums or decides in float32. On the CPU."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from tests.training.conftest import LIMITS, SMALL
from training import models, precision, rankings, rm
from training.__main__ import main
from training.data import Example
from training.unembedding import logprobs_at, loss_sum_at

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def float32_afterwards():
    yield
    precision.use("float32", CPU)


def losses_and_gradients(policy, ids_BT):
    policy.zero_grad()
    seen = []
    handle = policy.model.layers[0].mlp.register_forward_hook(lambda *call: seen.append(call[2].dtype))
    loss = loss_sum_at(policy, ids_BT, None, None, ids_BT.roll(-1, 1), torch.ones_like(ids_BT, dtype=torch.bool))
    loss.backward()
    handle.remove()
    return loss, torch.cat([p.grad.flatten() for p in policy.parameters()]), seen


def test_products_run_in_bfloat16_and_losses_weights_and_gradients_stay_float32(policy):
    ids_BT = torch.randint(5, 300, (3, 20), generator=torch.Generator().manual_seed(0))
    exact, exact_gradients, before = losses_and_gradients(policy, ids_BT)
    precision.use("bf16", CPU)
    loss, gradients, seen = losses_and_gradients(policy, ids_BT)
    assert (set(before), set(seen)) == ({torch.float32}, {torch.bfloat16})
    assert loss.dtype == gradients.dtype == torch.float32
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
    assert loss.item() != exact.item()
    assert loss.item() == pytest.approx(exact.item(), rel=1e-2)
    assert torch.nn.functional.cosine_similarity(gradients, exact_gradients, dim=0) > 0.99


def test_rewards_and_logprobs_come_out_in_float32(policy, reward_model):
    precision.use("bf16", CPU)
    scorer = models.load_reward_model(reward_model)
    ids_BT = torch.arange(12)[None]
    keep_BT = torch.ones_like(ids_BT, dtype=torch.bool)
    assert models.token_scores(scorer, ids_BT, keep_BT, ids_BT).dtype == torch.float32
    assert logprobs_at(policy, ids_BT, None, None, ids_BT, keep_BT).dtype == torch.float32
    examples = [Example([1, 2, 3, 4, *tail], 4) for tail in ([5], [6, 7], [8])]
    shared, apart = (rm.rewards_at_end(rankings.Runner(scorer, kind, 0), examples) for kind in ("shared", "responses"))
    assert shared.dtype == torch.float32
    assert torch.allclose(shared, apart, atol=0.03)


@pytest.mark.parametrize("stage", ["pretrain", "sft", "rm", "dpo", "ppo"])
def test_a_stage_trains_in_bf16_and_publishes_float32(stage, base, sft_model, reward_model, export, tmp_path):
    """PPO's own checks run too: the first ratio of each iteration is 1, the first KL 0."""
    labels = {"export": export, "epochs": 1, "batch-size": 14, "log-every": 1, **LIMITS}
    flags = {
        "pretrain": {**SMALL, "documents": 60, "row-tokens": 256, "batch-rows": 2, "steps": 2, "warmup-steps": 1},
        "sft": {**labels, "base-model": base},
        "rm": {**labels, "sft-model": sft_model},
        "dpo": {**labels, "policy": sft_model, "valid-episodes": 2},
        "ppo": {"policy": sft_model, "reward-model": reward_model, "export": export, "prompt-tokens": 200}
        | {
            "response-tokens": 8,
            "iterations": 2,
            "warmup-iterations": 1,
            "episodes": 8,
            "minibatch": 4,
            "valid-episodes": 2,
            "temperature": 0.7,
        },
    }[stage]
    given = {"out": tmp_path / "out", "dtype": "bf16", "threads": 1} | flags
    words = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert main([stage, *words]) == 0
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.float32}
    rows = [json.loads(line) for line in (tmp_path / "out" / "training_log.jsonl").read_text().splitlines()]
    assert all(math.isfinite(value) for row in rows for value in row.values())
