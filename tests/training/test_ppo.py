"""The PPO stage as a whole: what it publishes and logs, and the runs that it stops."""

import json
import math
import tomllib
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from training import corpus, data, episodes, experience, models, ppo, ppo_gradients, tinyworld
from training.contract import read_model_manifest
from training.errors import StageError

CONFIGS = Path(ppo.__file__).parent / "configs"
TEXT = {"ptx_text": "tinyworld", "ptx_documents": 40, "ptx_valid_documents": 4, "ptx_row_tokens": 256}


@pytest.fixture
def run(sft_model, reward_model, export, tmp_path):
    """Runs PPO on the really small models; returns the published folder."""

    def run(name="out", **fields):
        common = {
            "policy": str(sft_model),
            "reward_model": str(reward_model),
            "export": str(export),
            "iterations": 2,
            "episodes": 8,
            "minibatch": 4,
            "prompt_tokens": 200,
            "response_tokens": 8,
            "learning_rate": 1e-3,
            "valid_episodes": 8,
        }
        return ppo.run(ppo.Config(**(common | {"out": str(tmp_path / name)} | fields)))

    return run


def log_of(folder):
    return [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]


def weights(folder):
    return torch.cat([p.detach().flatten() for p in models.load_policy(folder).parameters()])


def test_the_weights_published_are_the_average(run, sft_model):
    """Four steps with decay 0.5, from plain runs that stop after each iteration of one step."""
    steps = {"minibatch": 8, "iterations": 1}
    start = weights(sft_model)
    first = weights(run("one", **steps))
    second = weights(run("two", **(steps | {"iterations": 2})))
    averaged = weights(run("average", **(steps | {"iterations": 2}), ema_decay=0.5))
    torch.testing.assert_close(averaged, 0.25 * start + 0.25 * first + 0.5 * second, rtol=1e-5, atol=1e-7)
    assert not torch.equal(averaged, second)


def test_a_kl_target_moves_the_coefficient_and_the_log_tells_it(run):
    folder = run(kl_target=1000.0, kl_coef=0.1)  # always below it: ·0.98 each iteration
    for row in log_of(folder):  # of two minibatches the first is what is checked
        assert row["first_ratio"] == pytest.approx(1, abs=1e-5)
        assert row["first_ratio_gap"] < 1e-5 < row["ratio_gap"]
    assert [row["kl_coef"] for row in log_of(folder)] == pytest.approx([0.1, 0.098])
    metrics = read_model_manifest(folder).metrics
    assert (metrics["kl_coef"], metrics["kl_coef_after"]) == pytest.approx((0.1, 0.098))
    assert {"kl", "kl_k2", "kl_k3", "score", "reward", "gradient_norm"} <= set(log_of(folder)[0])


def test_samples_in_the_log_are_prompts_and_answers_as_text(run):
    assert all("samples" not in row for row in log_of(run("quiet")))
    for row in log_of(run("shown", log_samples=3)):
        assert [set(sample) for sample in row["samples"]] == [{"prompt", "response", "finish_reason"}] * 3
        for sample in row["samples"]:
            tinyworld.read_ask(sample["prompt"])  # raises where the text is not the prompt's own
            assert sample["finish_reason"] in ("stop", "length")


def test_ptx_is_trained_logged_and_measured(run, tokenizer):
    folder = run(ptx_coef=1.0, ptx_examples=0.5, **TEXT)
    row, metrics = log_of(folder)[-1], read_model_manifest(folder).metrics
    assert row["ptx_gradient_ratio"] > 0
    assert row["ptx_loss"] > 0
    text = corpus.load(tokenizer, None, row_tokens=256, valid_documents=4, documents=40, seed=0)
    after = corpus.mean_loss(models.load_policy(folder), text.valid, 4, "cpu")
    assert metrics["lm_loss_after"] == pytest.approx(after, rel=1e-5)
    alone = read_model_manifest(run("alone", **TEXT)).metrics
    assert alone["lm_loss_before"] == metrics["lm_loss_before"]
    assert metrics["lm_loss_after"] < min(alone["lm_loss_after"], metrics["lm_loss_before"])


def test_the_control_has_the_same_text_and_no_rl(run, reward_model):
    folder = run(ptx_coef=1.0, ptx_examples=0.5, ptx_only=True, **TEXT)
    rows, metrics = log_of(folder), read_model_manifest(folder).metrics
    assert all("score" not in row and "policy_loss" not in row for row in rows)
    assert metrics["lm_loss_after"] < metrics["lm_loss_before"]
    again = run("beta", ptx_coef=1.0, ptx_examples=0.5, ptx_only=True, kl_coef=5.0, clip=0.9, **TEXT)
    assert torch.equal(weights(folder), weights(again)), "nothing of RL is in it"


def test_every_step_trains_on_rows_of_text_of_its_own(run, monkeypatch):
    """Two iterations of two minibatches: a step that counted from each iteration's start would see the same rows again."""
    steps, rows_at = [], corpus.rows_at
    monkeypatch.setattr(
        corpus, "rows_at", lambda count, batch, seed, step: steps.append(step) or rows_at(count, batch, seed, step)
    )
    run(ptx_coef=1.0, ptx_examples=0.5, **TEXT)
    assert steps == [0, 1, 2, 3]


@pytest.mark.parametrize("rewards", ["one", "equal"])
def test_rewards_without_a_deviation_give_no_figure_beside_it(rewards, run, monkeypatch):
    """An export may have one validation prompt, and a reward model may score all alike."""
    honest = ppo.measure

    def measure(config, players, prompts, text, when):
        if rewards == "one":
            return honest(config, players, prompts[:1], text, when)
        return honest(config, players, prompts, text, when) | {f"reward_std_{when}": 0.0}

    monkeypatch.setattr(ppo, "measure", measure)
    metrics = read_model_manifest(run(iterations=1)).metrics
    assert math.isfinite(metrics["reward_mean_before"])
    assert metrics.get("reward_std_before") == (None if rewards == "one" else 0)
    assert "kl_coef_per_reward_std" not in metrics


def test_reference_and_reward_model_stay_put_while_policy_and_critic_train(run, sft_model, reward_model, export):
    """A reference that is the policy itself would pass every check before the first step, and no KL would ever be paid."""
    rows = log_of(run(learning_rate=1e-2, value_learning_rate=1e-2))
    assert abs(rows[0]["kl_k3"]) < 1e-4 < rows[1]["kl_k3"]
    fields = {"out": "x", "policy": str(sft_model), "reward_model": str(reward_model), "export": str(export)}
    players = ppo.load_players(ppo.Config(**fields), torch.device("cpu"))[:4]
    places = [{parameter.data_ptr() for parameter in player.parameters()} for player in players]
    assert len(set.union(*places)) == sum(len(place) for place in places), "no two share a weight"


@pytest.mark.parametrize(("part", "named"), [("reward_model", "reward"), ("policy", "kl"), ("critic", "values")])
def test_a_number_that_is_not_finite_stops_the_run_and_is_named(run, part, named, monkeypatch):
    load = ppo.load_players

    def broken(*arguments):
        players = load(*arguments)
        with torch.no_grad():
            list(getattr(players, part).parameters())[-1].fill_(math.nan)
        return players

    monkeypatch.setattr(ppo, "load_players", broken)
    with pytest.raises(StageError, match=rf"iteration 0: not a finite number: {named}"):
        run()


def test_a_policy_that_is_not_its_reference_stops_the_run(run, monkeypatch):
    load = ppo.load_players

    def moved(*arguments):
        players = load(*arguments)
        with torch.no_grad():
            for parameter in players.reference.parameters():
                parameter.mul_(1.2)
        return players

    monkeypatch.setattr(ppo, "load_players", moved)
    with pytest.raises(StageError, match=r"KL to the reference is .* before the first step, not 0"):
        run()


def test_a_gradient_that_is_not_finite_stops_the_run_and_is_named(run, monkeypatch):
    def infinite(*arguments):
        losses = honest(*arguments)
        next(arguments[1].policy.parameters()).grad.fill_(math.inf)
        return losses

    honest = ppo_gradients.backward_losses
    monkeypatch.setattr(ppo_gradients, "backward_losses", infinite)
    with pytest.raises(StageError, match="iteration 0: not a finite number: gradient_norm"):
        run()


def test_episodes_that_other_weights_sampled_stop_the_run(run, monkeypatch):
    """Their mean ratio is 1 all the same, so only the single ratios tell."""

    def stale(config, players, prompts, generator):
        rollout = honest(config, players, prompts, generator)
        with torch.no_grad():
            for parameter in players.policy.parameters():
                parameter.add_(0.002 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        return rollout

    def collect(*arguments):
        if arguments[-1] == 1:
            monkeypatch.setattr(ppo, "respond", stale)
        return gather(*arguments)

    honest, gather = ppo.respond, ppo.collect
    monkeypatch.setattr(ppo, "collect", collect)
    with pytest.raises(StageError, match=r"iteration 1: the first minibatch's ratios .* a mean of (1\.000|0\.999)"):
        run(episodes=64, minibatch=64, response_tokens=24)


def test_a_rollout_of_one_minibatch_trains_alike_whole_and_in_parts(run):
    """Whole, the critic's pass that gave the values is the one it is trained on; in parts or epochs it runs again."""
    whole, parts = run("whole", minibatch=8), run("parts", minibatch=8, parts=2)
    torch.testing.assert_close(weights(whole), weights(parts), rtol=1e-3, atol=1e-4)
    for first, second in zip(log_of(whole), log_of(parts), strict=True):
        assert first == pytest.approx(second, rel=1e-3, abs=1e-5)
    assert not torch.equal(weights(whole), weights(run("epochs", minibatch=8, inner_epochs=2)))


def test_dropout_in_the_config_is_off_in_ppo(tokenizer, export, tmp_path):
    """GPT-2 with dropout 0.5: two forwards bit-equal, before and after training steps, and the first ratio is 1."""
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 256}
    dropout = {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    gpt2 = GPT2LMHeadModel(GPT2Config(**sizes, **dropout, **ends))
    policy, judge = tmp_path / "gpt2", tmp_path / "judge"
    gpt2.save_pretrained(policy)
    models.reward_model_from(policy, seed=0).save_pretrained(judge)
    for folder in (policy, judge):
        tokenizer.save_pretrained(folder)
    fields = {"policy": str(policy), "reward_model": str(judge), "export": str(export), "prompt_tokens": 200}
    fields |= {"episodes": 4, "minibatch": 4, "iterations": 2, "response_tokens": 8, "valid_episodes": 4}
    config = ppo.Config(out=str(tmp_path / "out"), learning_rate=1e-3, **fields)
    players = ppo.load_players(config, torch.device("cpu"))
    assert players.policy.config.resid_pdrop == 0.5
    prompts = [data.encode_prompt(tokenizer, [{"role": "user", "content": text}]) for text in ("Hi", "A fox?") * 2]
    rollout = ppo.respond(config, players, prompts, torch.Generator().manual_seed(0))
    gained, _ = experience.gain_experience(players, rollout, config.shaping(0.1))
    ppo_gradients.backward_losses(config, players, gained)
    for model in players[:2]:
        assert not model.training
    packed = episodes.pack(gained.sequences)
    first, second = (episodes.response_logprobs(players.policy, packed, 1.0) for _ in range(2))
    assert torch.equal(first, second)
    values = [episodes.response_values(players.critic, packed) for _ in range(2)]
    assert torch.equal(*values)
    assert read_model_manifest(ppo.run(config)).stage == "ppo", "the checks of ratio and KL pass in a whole run"


@pytest.mark.parametrize(
    "path", sorted({*CONFIGS.glob("*ppo*.toml"), *CONFIGS.glob("paper_*.toml")}), ids=lambda p: p.stem
)
def test_adam_epsilon_is_pinned_in_the_configs_that_ship(path):
    values = tomllib.loads(path.read_text())
    assert values["adam_epsilon"] == (1e-5 if "ppo" in path.stem else 1e-8)
