"""Cheap fine-tuning: what each method trains and leaves, loads in peft alone and in ours, and is refused where it cannot be."""

import dataclasses
import functools
import itertools
import json
import shutil
import warnings

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from training import adapters, data, dpo, models, players, ppo, rm, sft
from training.adapters import AdapterError, AdapterSettings
from training.config import ConfigError, from_dict
from training.contract import read_model_manifest
from training.errors import DryRun
from training.selection import Judge

METHODS = ["lora", "adalora", "ia3", "prefix"]
CPU = torch.device("cpu")


def values_of(base, export, out, **fields):
    limits = {"prompt_tokens": 200, "response_tokens": 200}
    common = {"epochs": 1, "batch_size": 4, "learning_rate": 1e-2, "adapter_rank": 2, **limits}
    return {"out": str(out), "base_model": str(base), "export": str(export)} | common | fields


def config_of(*args, **fields):
    return from_dict(sft.Config, values_of(*args, **fields), "test")


@pytest.fixture(scope="module")
def tune(folder, base, export):
    """The adapter folder of an SFT run with a method, run once."""
    return functools.cache(lambda method: sft.run(config_of(base, export, folder / method, adapter=method)))


def logits_of(model, tokenizer):
    ids = torch.tensor([data.encode_prompt(tokenizer, [{"role": "user", "content": "A fox?"}])])
    with torch.no_grad():
        return model.eval()(ids).logits


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_folder_loads_in_peft_alone_and_differs_from_its_base(method, tune, base, policy, tokenizer):
    folder = tune(method)
    assert not (folder / "model.safetensors").exists(), "the base is not copied"
    modes = {(folder / name).stat().st_mode for name in ("adapter_model.safetensors", "README.md")}
    assert modes == {(base / "model.safetensors").stat().st_mode}
    alone = AutoPeftModelForCausalLM.from_pretrained(folder)
    before, after = logits_of(policy, tokenizer), logits_of(alone, tokenizer)
    assert not torch.allclose(before, after, atol=1e-3)
    manifest = read_model_manifest(folder)
    assert manifest.parents["base"] == models.parent_of(base)
    assert manifest.metrics["valid_loss"] < manifest.metrics["valid_loss_before"]


@pytest.mark.parametrize("method", ["lora", "adalora", "ia3"])
def test_our_loader_gives_what_peft_gives(method, tune, tokenizer):
    alone = logits_of(AutoPeftModelForCausalLM.from_pretrained(tune(method)), tokenizer)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        ours = models.load_policy(tune(method))
    assert [str(warning.message) for warning in told] == [], "nothing that a user could do something about"
    assert not isinstance(ours, PeftModel)
    assert all(p.requires_grad for p in ours.parameters()), "a stage that takes it trains it"
    torch.testing.assert_close(logits_of(ours, tokenizer), alone, rtol=1e-4, atol=1e-5)


def test_our_loader_says_why_it_loads_no_prefix(tune):
    with pytest.raises(AdapterError, match="a prefix cannot be merged"):
        models.load_policy(tune("prefix"))


def test_a_reward_model_starts_from_the_merged_body(tune):
    folder = tune("lora")
    policy, reward_model = models.load_policy(folder), models.reward_model_from(folder, seed=0)
    for (name, p), (_, q) in zip(
        policy.base_model.named_parameters(), reward_model.base_model.named_parameters(), strict=True
    ):
        assert torch.equal(p, q), name


def test_all_weights_are_trained_further_from_an_adapter(tune, export, tmp_path):
    folder = sft.run(config_of(tune("lora"), export, tmp_path / "whole"))
    before, after = models.load_policy(tune("lora")), models.load_policy(folder)
    for (name, p), (_, q) in zip(before.named_parameters(), after.named_parameters(), strict=True):
        assert not torch.equal(p, q), name


def test_merged_on_request_it_is_a_plain_model_with_the_same_logits(tune, base, export, tokenizer, tmp_path):
    folder = tune("adalora")
    merged = sft.run(config_of(base, export, tmp_path / "merged", adapter="adalora", merge=True))
    assert not (merged / "adapter_config.json").exists()
    expected = logits_of(AutoPeftModelForCausalLM.from_pretrained(folder), tokenizer)
    plain = AutoModelForCausalLM.from_pretrained(merged)
    torch.testing.assert_close(logits_of(plain, tokenizer), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_only_the_adapter_is_trained_and_checkpointed(method, base):
    model = models.load_policy(base)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    random_state = torch.get_rng_state()
    adapter = adapters.attach(model, AdapterSettings(method, 2), stage="sft", steps=10, seed=0, base=base)
    assert torch.equal(torch.get_rng_state(), random_state), "an adapter's start draws from a seed of its own"
    trained = [name for name, p in adapter.model.named_parameters() if p.requires_grad]
    assert 0 < sum(p.numel() for p in adapter.model.parameters() if p.requires_grad) < 4000
    tensors = {name for name, value in adapter.state_dict().items() if isinstance(value, torch.Tensor)}
    assert len(tensors) == len(trained)
    for name, p in model.named_parameters():
        plain = name.replace(".base_layer", "")
        if plain in before:
            assert torch.equal(p, before[plain]), f"{name}: an adapter starts as its base"


def test_a_run_with_adalora_resumes_bit_for_bit(tune, base, export, tmp_path, monkeypatch):
    """Its importances, gathered step by step, decide which ranks are left: they must come back too."""
    straight = tune("adalora")
    steps, real = itertools.count(1), sft.apply_adapter_step

    def breaks(*args, **kwargs):
        if next(steps) in (3, 6):
            raise RuntimeError("power cut")
        return real(*args, **kwargs)

    monkeypatch.setattr(sft, "apply_adapter_step", breaks)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="power cut"):
            sft.run(config_of(base, export, tmp_path / "cut", adapter="adalora", checkpoint_every=1))
    cut = sft.run(config_of(base, export, tmp_path / "cut", adapter="adalora"))
    for name in ("adapter_model.safetensors", "adapter_config.json", "training_log.jsonl"):
        assert (cut / name).read_bytes() == (straight / name).read_bytes(), name


def test_adalora_ends_with_its_budget(tune):
    """Of 1.5 times as many ranks, the budget is left, more to some matrices than to others; peft saves no others."""
    folder = tune("adalora")
    ranks = [len(v) for name, v in load_file(folder / "adapter_model.safetensors").items() if "lora_E" in name]
    assert len(ranks) == 7, "every matrix of the one layer"
    assert sum(ranks) == 7 * 2
    assert 1 <= min(ranks) < max(ranks) == 3


def test_the_epoch_that_a_judge_chooses_is_saved_as_it_was_measured(
    base, export, reward_model, tokenizer, tmp_path, monkeypatch
):
    """Later steps cut more ranks: saved by those, the chosen epoch would be another model than the one that was scored."""
    seen = []

    def score(self, policy):
        seen.append(logits_of(policy, tokenizer))
        policy.train()
        return [0.1, 0.9, 0.3][len(seen) - 1]

    monkeypatch.setattr(Judge, "score", score)
    fields = {"adapter": "adalora", "epochs": 3, "reward_model": str(reward_model)}
    folder = sft.run(config_of(base, export, tmp_path / "chosen", **fields))
    metrics = read_model_manifest(folder).metrics
    assert (metrics["selected_epoch"], metrics["selected_score"]) == (2, 0.9)
    saved = logits_of(models.load_policy(folder), tokenizer)
    torch.testing.assert_close(saved, seen[1], rtol=1e-4, atol=1e-5)
    assert not any(torch.allclose(saved, other, atol=1e-3) for other in (seen[0], seen[2]))


def test_adaloras_penalty_is_the_one_peft_adds_to_a_loss(base):
    model = models.load_policy(base)
    adapter = adapters.attach(model, AdapterSettings("adalora", 2), stage="sft", steps=10, seed=0, base=base)
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        whole = adapter.wrapper(ids, labels=ids).loss
        task = model(ids, labels=ids).loss
    assert (whole - task).item() == pytest.approx(adapter.penalty().item(), rel=1e-4)
    assert adapter.penalty().item() > 0


@pytest.mark.parametrize("method", ["lora", "adalora", "ia3"])
def test_a_reward_model_trained_with_an_adapter_is_published_merged_with_its_head(
    method, sft_model, export, tokenizer, tmp_path
):
    limits = {"prompt_tokens": 200, "response_tokens": 200}
    fields = {"sft_model": str(sft_model), "export": str(export), "epochs": 1, "batch_size": 4, "learning_rate": 1e-2}
    folder = rm.run(rm.Config(out=str(tmp_path / "rm"), adapter=method, adapter_rank=2, **fields, **limits))
    assert not (folder / "adapter_config.json").exists()
    before, after = models.reward_model_from(sft_model, 0), models.load_reward_model(folder)
    assert not torch.equal(models.head_of(before).weight, models.head_of(after).weight), "the head is trained"
    old, new = dict(before.base_model.named_parameters()), dict(after.base_model.named_parameters())
    assert old.keys() == new.keys(), "a plain model again"
    assert any(not torch.equal(old[name], new[name]) for name in old), "the body too"
    assert torch.equal(old["embed_tokens.weight"], new["embed_tokens.weight"]), "but not its embeddings"


def test_dpo_with_lora_leaves_an_adapter_on_the_policy_it_began_with(sft_model, export, tokenizer, tmp_path):
    limits = {"prompt_tokens": 200, "response_tokens": 200, "valid_episodes": 4}
    fields = {"policy": str(sft_model), "export": str(export), "epochs": 1, "batch_size": 4, "learning_rate": 1e-2}
    folder = dpo.run(dpo.Config(out=str(tmp_path / "dpo"), adapter="lora", adapter_rank=2, **fields, **limits))
    alone = logits_of(AutoPeftModelForCausalLM.from_pretrained(folder), tokenizer)
    torch.testing.assert_close(logits_of(models.load_policy(folder), tokenizer), alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(alone, logits_of(models.load_policy(sft_model), tokenizer), atol=1e-3)


@pytest.fixture(scope="module")
def ppo_of(folder, sft_model, reward_model, export):
    """Runs PPO with an adapter on the really small models; returns the published folder."""

    def run(name, **fields):
        common = {"policy": str(sft_model), "reward_model": str(reward_model), "export": str(export), "iterations": 3}
        common |= {"episodes": 8, "minibatch": 4, "prompt_tokens": 200, "response_tokens": 8, "valid_episodes": 4}
        common |= {"learning_rate": 1e-2, "adapter_rank": 2, "checkpoint_every": 1, "ema_decay": 0.5}
        return ppo.run(ppo.Config(out=str(folder / name), **(common | fields)))

    return run


@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_ppo_leaves_an_adapter_on_the_policy_it_began_with(method, ppo_of, sft_model, tokenizer):
    folder = ppo_of(f"ppo-{method}", adapter=method)
    assert not (folder / "model.safetensors").exists(), "the base is not copied"
    alone = logits_of(AutoPeftModelForCausalLM.from_pretrained(folder), tokenizer)
    torch.testing.assert_close(logits_of(models.load_policy(folder), tokenizer), alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(alone, logits_of(models.load_policy(sft_model), tokenizer), atol=1e-3)
    metrics = read_model_manifest(folder).metrics
    assert metrics["kl_before"] == pytest.approx(0, abs=1e-5)
    assert metrics["kl_k3_after"] > 1e-7, "the reference did not move with the policy"
    merged = AutoModelForCausalLM.from_pretrained(ppo_of(f"ppo-{method}-merged", adapter=method, merge=True))
    torch.testing.assert_close(logits_of(merged, tokenizer), alone, rtol=1e-4, atol=1e-5)


def test_ppo_with_an_adapter_resumes_bit_for_bit(ppo_of, monkeypatch):
    straight = ppo_of("straight", adapter="lora")
    steps, real = itertools.count(1), ppo.apply_step

    def breaks(*args, **kwargs):
        if next(steps) in (6, 11):  # four steps an iteration
            raise RuntimeError("power cut")
        return real(*args, **kwargs)

    monkeypatch.setattr(ppo, "apply_step", breaks)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="power cut"):
            ppo_of("cut", adapter="lora")
    cut = ppo_of("cut", adapter="lora")
    for name in ("adapter_model.safetensors", "training_log.jsonl"):
        assert (cut / name).read_bytes() == (straight / name).read_bytes(), name


def test_policy_with_an_adapter_and_reference_are_one_model_in_memory(base):
    policy, reference = models.load_policy(base), models.load_policy(base)
    adapters.attach(policy, AdapterSettings("lora", 2), stage="ppo", steps=4, seed=0, base=base)
    players.share_frozen_weights(policy, reference)
    own = {p.data_ptr() for p in reference.parameters()}
    assert {p.data_ptr() for p in policy.parameters() if not p.requires_grad} == own
    assert own.isdisjoint(p.data_ptr() for p in policy.parameters() if p.requires_grad)


def test_a_dry_run_counts_what_an_adapter_trains_and_shared_weights_once(ppo_of, base, reward_model, recwarn):
    with pytest.raises(DryRun) as plan:
        ppo_of("planned", adapter="lora", dry_run=True)
    whole, judge = models.load_policy(base), models.load_reward_model(reward_model)
    small = AdapterSettings("lora", 2)
    attached = adapters.attach(models.load_policy(base), small, stage="ppo", steps=1, seed=0, base=base)
    adapter = sum(p.numel() for p in attached.model.parameters() if p.requires_grad)
    policy, critic = (sum(p.numel() for p in model.parameters()) for model in (whole, judge))
    assert f"{policy + adapter:,} parameters, {adapter:,} of them in its adapter" in str(plan.value)
    weights, learned = 4 * (policy + adapter + 2 * critic), 4 * (adapter + critic)
    for name, size in (("weights", weights), ("gradients", learned), ("AdamW", 2 * learned)):
        assert f"{name} {size / 1024:.3g} KiB" in str(plan.value)
    assert not [warning for warning in recwarn if issubclass(warning.category, FutureWarning)]


@pytest.mark.parametrize(("stage", "role"), [(rm, "sft_model"), (dpo, "policy")])
def test_dry_runs_on_rankings_count_what_an_adapter_trains_and_refuse_a_prefix(
    stage, role, sft_model, export, tmp_path
):
    fields = {"export": str(export), "prompt_tokens": 200, "response_tokens": 200, "batch_size": 4, "dry_run": True}
    config = stage.Config(out=str(tmp_path / "out"), **{role: str(sft_model)}, **fields, adapter="lora", adapter_rank=2)
    with pytest.raises(DryRun, match="of them in its adapter"):
        stage.run(config)
    with pytest.raises(AdapterError, match="adapter prefix is not supported"):
        stage.run(dataclasses.replace(config, adapter="prefix"))


@pytest.mark.parametrize("method", ["adalora", "prefix"])
def test_ppo_refuses_the_other_methods_with_their_reason(method, ppo_of):
    with pytest.raises(AdapterError, match=f"adapter {method} is not supported in ppo: "):
        ppo_of("refused", adapter=method)


def test_an_adapter_on_an_adapter_must_be_merged(tune, tmp_path, export):
    config = config_of(tune("lora"), export, tmp_path / "second", adapter="ia3")
    with pytest.raises(AdapterError, match="peft stacks none on another: set merge"):
        sft.run(config)


def test_an_adapter_finds_its_base_from_any_folder_and_after_both_were_moved(base, export, tmp_path, monkeypatch):
    shutil.copytree(base, tmp_path / "here" / "base")
    monkeypatch.chdir(tmp_path / "here")
    sft.run(config_of("base", export, "lora", adapter="lora"))
    monkeypatch.chdir(tmp_path)
    assert adapters.base_of("here/lora") == str(tmp_path / "here" / "base")
    (tmp_path / "here").rename(tmp_path / "there")
    assert adapters.base_of("there/lora") == str(tmp_path / "there" / "base")
    models.load_policy("there/lora")
    (tmp_path / "there" / "base" / "manifest.json").write_text("of another model")
    assert adapters.base_of("there/lora") == str(tmp_path / "here" / "base")


def test_another_base_under_the_adapter_is_refused(base, export, tmp_path):
    mine = shutil.copytree(base, tmp_path / "mine")
    folder = sft.run(config_of(mine, export, tmp_path / "lora", adapter="lora"))
    models.load_policy(folder)
    manifest = json.loads((mine / "manifest.json").read_text())
    del manifest["fields_sha256"]
    (mine / "manifest.json").write_text(json.dumps(manifest | {"seed": 77}))
    with pytest.raises(AdapterError, match="is not the model that it was trained on"):
        models.load_policy(folder)


def test_every_cell_of_the_table_is_supported_or_refused_with_its_reason():
    for stage, method in itertools.product(adapters.SUPPORTED, METHODS):
        if method in adapters.SUPPORTED[stage]:
            adapters.check(stage, method)
            assert (stage, method) not in adapters.REASONS
        else:
            with pytest.raises(AdapterError, match=f"adapter {method} is not supported in {stage}: "):
                adapters.check(stage, method)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"adapter": "prefix", "packing": True}, "packing: does not go with adapter prefix"),
        ({"adapter": "prefix", "pretraining_mix": 0.1}, "pretraining_mix: does not go with adapter prefix"),
        ({"adapter": "prefix", "reward_model": "rm"}, "reward_model: does not go with adapter prefix"),
        ({"adapter": "prefix", "merge": True}, "merge: does not go with adapter prefix"),
        ({"merge": True}, "merge: needs an adapter"),
        ({"adapter": "unheard-of"}, "adapter: expected one of none, lora"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_before_anything_loads(fields, message):
    with pytest.raises(ConfigError, match=message):
        config_of("base", "export", "out", **fields)
