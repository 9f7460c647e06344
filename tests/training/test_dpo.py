"""DPO: log-probabilities of responses in every encoding, the loss by hand, and a policy that learns what labelers prefer."""

import math
from collections import Counter

import pytest
import torch

from training import data, dpo, models, rankings
from training.checkpoints import RunState
from training.contract import read_export, read_model_manifest

UNLIMITED = data.LengthLimits(10_000, 10_000)
LIMITS = {"prompt_tokens": 200, "response_tokens": 200}


@pytest.fixture(scope="module")
def comparisons(export, tokenizer):
    return data.read_comparisons(read_export(export), tokenizer, "train", UNLIMITED, Counter(), for_training=True)


def runner(folder, encoding, tokenizer):
    return rankings.runner_for(models.load_policy(folder), encoding, tokenizer.pad_token_id)


def test_response_logprobs_are_sums_over_the_responses_own_tokens(base, comparisons, tokenizer):
    """Against log-softmax of transformers' own logits, one sequence at a time; an empty response has 0."""
    policy = models.load_policy(base)
    examples = [*comparisons[0].examples, *comparisons[1].examples]
    prompt = comparisons[0].examples[0].ids[: comparisons[0].examples[0].prompt_tokens]
    examples.append(data.Example(prompt, len(prompt)))
    expected = []
    for example in examples:
        logprobs = policy(torch.tensor([example.ids])).logits[0].log_softmax(-1)
        expected.append(
            sum(logprobs[t - 1, example.ids[t]].item() for t in range(example.prompt_tokens, len(example.ids)))
        )
    assert expected[-1] == 0.0
    for encoding in ("pairs", "responses", "shared", "auto"):
        logprobs_N = runner(base, encoding, tokenizer).response_logprobs(examples)
        torch.testing.assert_close(logprobs_N, torch.tensor(expected), rtol=1e-5, atol=1e-4)


def test_loss_and_gradients_are_equal_in_all_encodings_and_parts(base, sft_model, comparisons, tokenizer):
    reference = dpo.logprobs_of(runner(base, "responses", tokenizer), comparisons[:5], 2)
    outcomes = []
    for encoding, parts in (("responses", 1), ("shared", 1), ("shared", 3), ("pairs", 2)):
        player = runner(sft_model, encoding, tokenizer)
        figures = dpo.backward_mean(player, comparisons[:5], reference, beta=0.2, parts=parts)
        gradient = torch.cat([p.grad.flatten() for p in player.model.parameters()])
        outcomes.append((figures["loss"], gradient))
    for loss, gradient in outcomes[1:]:
        assert loss == pytest.approx(outcomes[0][0], abs=1e-5)
        assert (gradient - outcomes[0][1]).norm() < 1e-4 * outcomes[0][1].norm()


def test_before_the_first_step_every_implicit_reward_is_zero(base, comparisons, tokenizer):
    player = runner(base, "auto", tokenizer)
    reference = dpo.logprobs_of(player, comparisons[:4], 4)
    rewards_N, indexed = dpo.implicit_rewards(player, comparisons[:4], reference, beta=1.0)
    assert rewards_N.abs().max() < 1e-4
    share = sum(len(ranking.pairs) / ranking.pair_count for ranking in indexed) / 4
    loss = dpo.backward_mean(player, comparisons[:4], reference, 1.0, 1)["loss"]
    assert loss == pytest.approx(share * math.log(2), abs=1e-4)


def test_it_learns_the_training_pairs_and_says_what_it_did(base, export, tmp_path):
    config = dpo.Config(
        out=str(tmp_path / "dpo"),
        policy=str(base),
        export=str(export),
        epochs=4,
        batch_size=4,
        learning_rate=3e-3,
        valid_episodes=6,
        **LIMITS,
    )
    manifest = read_model_manifest(dpo.run(config))
    metrics = manifest.metrics
    assert manifest.stage == "dpo"
    assert manifest.parents == {"policy": models.parent_of(base)}
    assert metrics["accuracy_train_training"] > 0.8
    assert metrics["reward_margin_train"] > 0
    assert 0 <= metrics["accuracy_valid"] <= 1
    assert metrics["kl_k3_after"] > 0
    assert metrics["skipped_held_out"] == 1, "held-out labels are measured and not trained on"
    assert "accuracy_train_held_out" in metrics


def test_reference_logprobs_are_kept_for_a_resumed_run_and_for_no_other(tmp_path, capsys):
    state = RunState(tmp_path / "dpo", "dpo", {"beta": 0.1}, {}, None)
    kept = [[-1.25, -0.1], [-3.0000001]]
    state.part("reference").write_result(kept)
    assert RunState(tmp_path / "dpo", "dpo", {"beta": 0.1}, {}, None).part("reference").read_result() == kept
    other = RunState(tmp_path / "dpo", "dpo", {"beta": 0.2}, {}, None)
    assert other.part("reference").read_result() is None
    assert state.part("fold-1").read_result() is None
    path = next((tmp_path / "dpo.run").rglob("result.json"))
    path.write_bytes(path.read_bytes().replace(b"-1.25", b"-1.35"))
    assert state.part("reference").read_result() is None, "what does not match its checksum is computed again"
    assert "result.json: does not match its checksum" in capsys.readouterr().err
