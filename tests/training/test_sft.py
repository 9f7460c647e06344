"""SFT's loss against TRL's and by hand; packing, dropout, the mix and the choice of the epoch; a run with all of it resumed."""

import itertools
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config

from training import corpus, data, models, response_loss, sft
from training.checkpoints import RunState
from training.config import to_dict
from training.contract import read_export, read_model_manifest
from training.dropout import residual_dropout
from training.errors import StageError
from training.selection import Best, Judge, epoch_ended

CPU = torch.device("cpu")
UNLIMITED = data.LengthLimits(10_000, 10_000)


@pytest.fixture
def examples(tokenizer, export):
    rows = data.read_demonstrations(read_export(export), "train", Counter())[:9]
    found = data.encode_demonstrations(tokenizer, rows, UNLIMITED, Counter())
    assert len({example.response_tokens for example in found}) > 2, "ragged"
    return found


def gradients(model):
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return found


def next_token_loss_sum(logits_BTV: torch.Tensor, ids_BT: torch.Tensor, loss_BT: torch.Tensor) -> torch.Tensor:
    """Sum of −log p over the tokens with loss_BT; logits at t predict ids at t + 1.

    A sum, so that accumulated minibatches divide once by the count of the whole batch: the token mean stays the same.
    """
    kept_BT = loss_BT[:, 1:]
    return torch.nn.functional.cross_entropy(
        logits_BTV[:, :-1][kept_BT].float(), ids_BT[:, 1:][kept_BT], reduction="sum"
    )


def plain_means(model, examples, pad_id):
    """(L_R, L_W) of a batch, from the plain logits."""
    batch = data.collate(examples, pad_id)
    logits = model(batch.ids_BT, attention_mask=batch.keep_BT, position_ids=batch.positions_BT).logits
    responses = next_token_loss_sum(logits, batch.ids_BT, batch.loss_BT) / batch.loss_BT.sum()
    whole_BT = batch.keep_BT.clone()
    return responses, next_token_loss_sum(logits, batch.ids_BT, whole_BT) / whole_BT[:, 1:].sum()


def test_loss_and_gradients_equal_trls(base, policy, tokenizer, examples, tmp_path):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = [{"input_ids": e.ids, "completion_mask": [0] * e.prompt_tokens + [1] * e.response_tokens} for e in examples]
    settings = SFTConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[], max_length=None,
        completion_only_loss=True, eos_token=tokenizer.eos_token, pad_token=tokenizer.pad_token,
    )  # fmt: skip
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(base), settings, train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )  # fmt: skip
    inputs = trainer.data_collator([trainer.train_dataset[i] for i in range(len(rows))])
    theirs = trainer.compute_loss(trainer.model, inputs)
    theirs.backward()
    expected = gradients(trainer.model)
    for packed_tokens in (0, 300):
        ours = response_loss.backward_mean(
            policy, examples, 0, tokenizer.pad_token_id, CPU, packed_tokens=packed_tokens
        )
        assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
        torch.testing.assert_close(gradients(policy), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lm_coef", [0.0, 0.5])
def test_packed_demonstrations_give_the_loss_and_gradients_of_unpacked_ones(policy, tokenizer, examples, lm_coef):
    pad = tokenizer.pad_token_id
    alone = response_loss.backward_mean(policy, examples, 1, pad, CPU, lm_coef=lm_coef)
    expected = gradients(policy)
    longest = max(len(example.ids) for example in examples)
    for capacity, parts in ((2 * longest, 1), (3 * longest, 1), (2 * longest, 3)):
        rows = list(response_loss.rows_of(policy, examples, parts, pad, CPU, capacity))
        assert sum(len(part.labels_BT) for part in rows) < len(examples), "rows hold several demonstrations"
        packed = response_loss.backward_mean(policy, examples, parts, pad, CPU, lm_coef=lm_coef, packed_tokens=capacity)
        assert packed.item() == pytest.approx(alone.item(), rel=1e-5)
        torch.testing.assert_close(gradients(policy), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("parts", [0, 1, 4])
def test_loss_is_the_mean_over_all_response_tokens_plus_lambda_times_that_over_all_tokens(
    policy, tokenizer, examples, parts
):
    pad = tokenizer.pad_token_id
    responses, whole = plain_means(policy, examples, pad)
    (0.7 * (responses + 0.5 * whole)).backward()
    expected = gradients(policy)
    loss = response_loss.backward_mean(policy, examples, parts, pad, CPU, lm_coef=0.5, share=0.7)
    assert loss.item() == pytest.approx((responses + 0.5 * whole).item(), rel=1e-5)
    torch.testing.assert_close(gradients(policy), expected, rtol=1e-4, atol=1e-6)


def config_of(base, export, out, **fields):
    given = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-3, "prompt_tokens": 200, "response_tokens": 200}
    return sft.Config(out=str(out), base_model=str(base), export=str(export), **given | fields)


def test_the_mix_weighs_demonstrations_and_text_each_by_its_own_mean(policy, tokenizer, examples, base, export):
    config = config_of(
        base, export, "unused", pretraining_mix=0.25, pretraining_documents=30, pretraining_valid_documents=9
    )
    counts: Counter = Counter()
    mix = sft.make_mix(config, tokenizer, examples, counts)
    assert mix is not None
    assert (mix.text.valid.segments_BT.amax(1).sum(), mix.text.documents) == (9, 39)
    wanted = 0.25 / 0.75 * 4 * sum(e.response_tokens for e in examples) / len(examples) / 256
    assert mix.rows == counts["text_rows_per_step"] == max(1, round(wanted))
    responses, _ = plain_means(policy, examples, tokenizer.pad_token_id)
    rows = corpus.rows_at(len(mix.text.train.ids_BT), mix.rows, config.seed, 3)
    loss_sum, tokens = corpus.loss_sum(policy, mix.text.train, rows, CPU)
    (0.75 * responses + 0.25 * loss_sum / tokens).backward()
    expected = gradients(policy)
    losses = sft.backward_losses(config, policy, examples, mix, 3, tokenizer.pad_token_id, CPU)
    assert losses["loss"].item() == pytest.approx(responses.item(), rel=1e-5)
    assert losses["text_loss"].item() == pytest.approx(loss_sum.item() / tokens, rel=1e-5)
    torch.testing.assert_close(gradients(policy), expected, rtol=1e-4, atol=1e-6)


# ---- dropout --------------------------------------------------------------------------------------------------------


def gpt2():
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 50, "n_positions": 32}
    quiet = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return AutoModelForCausalLM.from_config(GPT2Config(**sizes, **quiet))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_residual_dropout_drops_in_training_and_never_in_evaluation(family, policy):
    model = policy if family == "llama" else gpt2()
    ids = torch.randint(5, 50, (2, 12), generator=torch.Generator().manual_seed(0))

    def twice():
        return [model(ids).logits for _ in range(2)]

    model.train()
    assert torch.equal(*twice()), "nothing drops without it"
    with residual_dropout(model, 0.2):
        assert not torch.equal(*twice())
        model.eval()
        quiet = twice()
        assert torch.equal(*quiet)
        model.train()
    assert torch.equal(quiet[0], model.eval()(ids).logits), "and it leaves nothing behind"


def test_residual_dropout_takes_its_share_of_each_block_and_nothing_of_the_stream(policy):
    """With rate p a share p of a block's output is nought, the rest scaled by 1/(1 − p)."""
    block = policy.model.layers[0].mlp
    seen = {}
    policy.train()
    ids = torch.randint(5, 50, (8, 40), generator=torch.Generator().manual_seed(0))
    handle = block.register_forward_hook(lambda module, inputs, output: seen.update(plain=output))
    with residual_dropout(policy, 0.2):
        last = block.register_forward_hook(lambda module, inputs, output: seen.update(dropped=output))
        policy(ids)
    handle.remove()
    last.remove()
    kept = seen["dropped"] != 0
    assert kept.float().mean().item() == pytest.approx(0.8, abs=0.02)
    torch.testing.assert_close(seen["dropped"][kept], seen["plain"][kept] / 0.8)


def test_residual_dropout_is_refused_where_its_place_is_not_known():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = AutoModelForCausalLM.from_config(Gemma2Config(**sizes, intermediate_size=32, vocab_size=50, head_dim=8))
    with (
        pytest.raises(StageError, match="no known place for it in a model of type gemma2"),
        residual_dropout(model, 0.2),
    ):
        pass


# ---- choosing the epoch ---------------------------------------------------------------------------------------------


def test_epochs_end_where_the_last_of_their_demonstrations_is_seen():
    ended = [epoch_ended(step, 4, 10) for step in range(8)]
    assert ended == [0, 0, 1, 0, 2, 0, 0, 3]


def test_the_best_epoch_is_kept_and_put_back(policy):
    best = Best(policy)
    weight = next(policy.parameters())
    for epoch, score in enumerate([0.5, 2.0, 1.0, 2.0], start=1):
        with torch.no_grad():
            weight.fill_(epoch)
        best.offer(score, epoch)
    resumed = Best(policy)
    resumed.load_state_dict(best.state_dict())
    resumed.put_back()
    assert (resumed.epoch, resumed.score) == (2, 2.0), "the first of equals"
    assert (weight == 2).all()


def test_with_the_best_weights_come_the_ranks_that_adalora_had_kept(policy):
    adapter = SimpleNamespace(ranks=None)
    best = Best(policy, adapter)  # type: ignore[arg-type]
    for epoch, ranks in enumerate([None, {"q_proj": [True, True]}, {"q_proj": [True, False]}], start=1):
        adapter.ranks = ranks
        best.offer([0.5, 2.0, 1.0][epoch - 1], epoch)
    best.load_state_dict(best.state_dict())
    best.put_back()
    assert adapter.ranks == {"q_proj": [True, True]}


def test_a_reward_model_that_scores_nan_chooses_no_epoch(policy, reward_model, tokenizer):
    prompts = [data.encode_prompt(tokenizer, [{"role": "user", "content": "A fox?"}])]
    judge = Judge(
        str(reward_model), tokenizer, prompts, batch=2, response_tokens=8, temperature=1.0, seed=5, device=CPU
    )
    with torch.no_grad():
        next(judge.reward_model.parameters()).fill_(float("nan"))
    with pytest.raises(StageError, match="scores the sampled responses nan"):
        judge.score(policy)


def test_a_judge_says_the_same_twice_and_leaves_the_random_numbers_alone(policy, reward_model, tokenizer):
    prompts = [data.encode_prompt(tokenizer, [{"role": "user", "content": text}]) for text in ("A fox?", "Why?", "No.")]
    options = {"response_tokens": 8, "temperature": 1.0, "seed": 5, "device": CPU}
    judge = Judge(str(reward_model), tokenizer, prompts, batch=2, **options)
    before = torch.get_rng_state()
    policy.train()
    assert judge.score(policy) == judge.score(policy)
    assert policy.training
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(StageError, match="no validation prompts"):
        Judge(str(reward_model), tokenizer, [], batch=2, **options)


class Scripted:
    """A judge with a mind of its own: these scores, in this order."""

    def __init__(self, scores):
        self.scores = iter(scores)
        self.seen = []

    def score(self, model):
        self.seen.append({name: p.detach().clone() for name, p in model.named_parameters()})
        return next(self.scores)


def test_the_weights_of_the_best_epoch_come_out_and_every_score_is_logged(base, export, examples, tokenizer, tmp_path):
    config = config_of(base, export, tmp_path / "sft", epochs=3)
    model = models.load_policy(base)
    judge = Scripted([0.1, 0.9, 0.3])
    state = RunState(config.out, "sft", to_dict(config), {}, None)
    best, log = sft.train_model(config, state, model, examples, None, judge, tokenizer.pad_token_id, CPU)
    assert [row["reward_model_score"] for row in log if "epoch" in row] == [0.1, 0.9, 0.3]
    assert best.epoch == 2
    for name, p in model.named_parameters():
        assert torch.equal(p, judge.seen[1][name]), name
    assert not torch.equal(
        judge.seen[1]["lm_head.weight" if "lm_head.weight" in judge.seen[1] else name], judge.seen[2][name]
    )


def test_a_run_with_everything_on_resumes_bit_for_bit(base, export, reward_model, tmp_path, monkeypatch):
    """Dropout, λ, mix, packing and selection, broken off twice and gone on with."""
    everything = {
        "residual_dropout": 0.2, "lm_coef": 0.5, "pretraining_mix": 0.2, "pretraining_documents": 40, "packing": True,
        "reward_model": str(reward_model), "selection_prompts": 3, "response_tokens": 200, "epochs": 2, "log_every": 3,
        "checkpoint_every": 1,
    }  # fmt: skip
    straight = sft.run(config_of(base, export, tmp_path / "straight", **everything))
    steps = itertools.count(1)
    real = sft.apply_adapter_step

    def breaks(*args):
        if next(steps) in (3, 9):
            raise RuntimeError("power cut")
        return real(*args)

    monkeypatch.setattr(sft, "apply_adapter_step", breaks)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="power cut"):
            sft.run(config_of(base, export, tmp_path / "cut", **everything))
        torch.manual_seed(99)
    cut = sft.run(config_of(base, export, tmp_path / "cut", **everything))
    for name in ("model.safetensors", "training_log.jsonl"):
        assert (cut / name).read_bytes() == (straight / name).read_bytes(), name
    manifest = read_model_manifest(cut)
    assert manifest.metrics == read_model_manifest(straight).metrics
    assert manifest.metrics["selected_epoch"] in (1, 2)
    assert manifest.metrics["text_rows_per_step"] >= 1
    assert set(manifest.parents) == {"base", "rm"}
