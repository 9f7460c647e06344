"""`python -m training evaluate by-task` on tiny models, and each of its figures against numbers worked by hand or computed another way."""

import json
import math
import re
import sys
import types
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from tests.training.test_model_evaluation import remade
from training import answers, bias_probes, harness, models, perplexity, toxicity
from training.__main__ import main
from training.alignment_tax import Measured, tax
from training.continuations import Classifier, Sampling, Speaker
from training.errors import StageError
from training.harness import TaskResult
from training.perplexity import DocumentLoss

CPU = torch.device("cpu")
SAMPLING = Sampling(max_new_tokens=4, temperature=1.0, seed=0, batch=8)


def words(out: Path, flags: dict) -> list[str]:
    given = {"out": out, "threads": 1} | flags
    return ["evaluate", "by-task", *(word for name, value in given.items() for word in (f"--{name}", str(value)))]


# ---- perplexity -----------------------------------------------------------------------------------------------------


def test_windows_overlap_by_half_and_count_each_token_once():
    assert perplexity.windows(20, 8) == [(0, 8, 1), (4, 12, 8), (8, 16, 12), (12, 20, 16)]
    assert perplexity.windows(21, 8)[-1] == (16, 21, 20)
    assert perplexity.windows(8, 8) == [(0, 8, 1)]
    assert perplexity.windows(1, 8) == perplexity.windows(0, 8) == []


def test_perplexity_of_a_model_that_knows_nothing(policy, tokenizer):
    """All logits equal: each token is one of V, so perplexity per token is V, whatever the text."""
    policy.lm_head.weight.data.zero_()
    texts = ["The owl eats seeds.", "Ein Wörtchen — ja?"]
    found = perplexity.figures(perplexity.document_losses(policy, tokenizer, texts, context=64, batch=4, device=CPU))
    vocabulary = policy.config.vocab_size
    tokens = sum(len(tokenizer(text)["input_ids"]) - 1 for text in texts)
    firsts = [tokenizer.decode(tokenizer(text)["input_ids"][0]) for text in texts]  # has nothing before it: not counted
    size = sum(len(text.encode()) - len(first) for text, first in zip(texts, firsts, strict=True))
    assert all(text.startswith(first) and first for text, first in zip(texts, firsts, strict=True))
    assert found["per_token"] == pytest.approx(vocabulary, rel=1e-5)
    assert (found["tokens"], found["bytes"], found["documents"]) == (tokens, size, 2)
    assert found["bits_per_byte"] == pytest.approx(tokens * math.log2(vocabulary) / size, rel=1e-5)
    assert found["per_byte"] == pytest.approx(2 ** found["bits_per_byte"])


def test_perplexity_equals_the_loss_of_each_token_alone_in_its_window(policy, tokenizer):
    text = "The owl eats seeds. The crab lives in the reef. The tiger is white."
    ids = tokenizer(text)["input_ids"]
    assert len(ids) > 16
    [found] = perplexity.document_losses(policy, tokenizer, [text], context=8, batch=3, device=CPU)
    total = 0.0
    for start, end, first in perplexity.windows(len(ids), 8):
        for at in range(first, end):
            logits = policy(torch.tensor([ids[start:at]])).logits[0, -1]
            total -= torch.log_softmax(logits.double(), -1)[ids[at]].item()
    assert found.nats == pytest.approx(total, rel=1e-5) and found.tokens == len(ids) - 1


def test_text_comes_from_files_folders_and_the_tiny_world(tmp_path):
    (tmp_path / "a.txt").write_text("One document\nof two lines.")
    (tmp_path / "b.jsonl").write_text(
        '{"text": "Two."}\n{"text": ""}\n{"messages": [{"role": "user", "content": "Three."}]}\n'
    )
    (tmp_path / "c.bin").write_bytes(b"\xff")
    (tmp_path / "empty.jsonl").touch()  # nothing to measure on is passed over, unlike nothing to train on
    assert perplexity.read_texts(str(tmp_path), 9) == ["One document\nof two lines.", "Two.", "Three."]
    assert perplexity.read_texts(str(tmp_path / "b.jsonl"), 1) == ["Two."]
    assert len(perplexity.read_texts("tinyworld", 30)) == 30
    (tmp_path / "c.bin").rename(tmp_path / "c.txt")
    with pytest.raises(StageError, match=r"c\.txt: not UTF-8 text"):
        toxicity.read_beginnings(str(tmp_path / "c.txt"), 3)
    with pytest.raises(StageError, match=r"c\.txt: not UTF-8 text"):
        perplexity.read_texts(str(tmp_path), 9)


# ---- tax ------------------------------------------------------------------------------------------------------------


def result(items: list[float], **fields) -> TaskResult:
    given = {"task": "t", "shots": 0, "metric": "acc", "higher_is_better": True, "truncated": 0} | fields
    return TaskResult(score=sum(items) / len(items), n=len(items), items=items, **given)


def test_the_tax_is_paired_and_says_what_is_worse():
    """Nine of ten items are lost and one is won; bits per byte rise by 1 and 3 on two documents of 10 bytes."""
    bits = math.log(2)
    base = Measured(
        "base",
        [DocumentLoss(10 * bits, 5, 10), DocumentLoss(20 * bits, 5, 10)],
        [result([1.0] * 9 + [0.0])],
        [0.1, 0.3],
    )
    other = Measured(
        "ppo", [DocumentLoss(20 * bits, 5, 10), DocumentLoss(50 * bits, 5, 10)], [result([0.0] * 9 + [1.0])], [0.1, 0.2]
    )
    text, task, toxic = tax(base, [other])
    assert (text["figure"], text["base_value"], text["value"], text["difference"]) == pytest.approx(
        ("bits_per_byte", 1.5, 3.5, 2.0)
    )
    assert (text["low"], text["is_worse"]) == pytest.approx((2 - 1.959964 * 1, True)), (
        "deviation √2 of 1 and 3, over √2"
    )
    assert (task["figure"], task["base_value"], task["value"], task["difference"]) == ("t_0shot", 0.9, 0.1, -0.8)
    spread = math.sqrt((9 * 0.2**2 + 1.8**2) / 9 / 10)
    assert (task["low"], task["high"]) == pytest.approx((-0.8 - 1.959964 * spread, -0.8 + 1.959964 * spread))
    assert task["is_worse"] is True
    assert (toxic["difference"], toxic["is_worse"]) == (pytest.approx(-0.05), False)
    lower = result([0.0, 1.0], higher_is_better=False, metric="wer")
    [better] = tax(
        Measured("b", tasks=[lower]), [Measured("p", tasks=[result([0.0, 0.0], higher_is_better=False, metric="wer")])]
    )
    assert (better["difference"], better["is_worse"]) == (-0.5, False)


# ---- toxicity and bias ----------------------------------------------------------------------------------------------


def test_toxicity_by_hand(monkeypatch):
    """Two beginnings, three continuations each: 0.9 0.1 0.2 and 0.4 0.4 0.4."""
    asked = []
    monkeypatch.setattr(
        toxicity, "continuations", lambda _, beginnings, __: asked.extend(beginnings) or list(beginnings)
    )
    scorer = types.SimpleNamespace(
        probabilities=lambda texts, _: [0.9, 0.1, 0.2, 0.4, 0.4, 0.4], label="toxic", name="c"
    )
    found, means = toxicity.toxicity(None, ["a", "b"], scorer, SAMPLING, samples=3, threshold=0.5)
    assert asked == ["a"] * 3 + ["b"] * 3
    assert means == pytest.approx([0.4, 0.4])
    assert (found["mean"], found["rate"], found["any_rate"], found["expected_max"]) == pytest.approx(
        (0.4, 1 / 6, 0.5, 0.65)
    )


def test_a_classifier_gives_the_probability_of_the_label_that_was_named(base, tmp_path, tokenizer):
    torch.manual_seed(0)
    names = {0: "fine", 1: "toxic", 2: "odd"}
    model = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=3, id2label=names, label2id={v: k for k, v in names.items()}
    )
    for several in (False, True):
        folder = tmp_path / f"c-{several}"
        model.config.problem_type = "multi_label_classification" if several else None
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        texts = ["The owl eats seeds.", "", "ja " * 400]
        scorer = Classifier(folder, "toxic", CPU)
        found = scorer.probabilities(texts, 2)
        with torch.no_grad():
            logits = model(torch.tensor([tokenizer(texts[0])["input_ids"]])).logits[0]
        expected = logits.sigmoid()[1] if several else logits.softmax(-1)[1]
        assert found[0] == pytest.approx(float(expected), rel=1e-4)
        assert Classifier(folder, "1", CPU).index == 1 and scorer.truncated == 1
        with pytest.raises(StageError, match="has no label 'rude'; its labels are fine, toxic, odd"):
            Classifier(folder, "rude", CPU)


def test_words_are_counted_by_group(monkeypatch):
    said = {"man": [" kind, and very tall.", "strong"], "woman": ["The woman was kind. KIND!", "…"]}
    drawn = lambda _, beginnings, __: said[beginnings[0].split()[1]]  # noqa: E731
    monkeypatch.setattr(bias_probes, "continuations", drawn)
    probes, left_out = bias_probes.read_probes(bias_probes.SHIPPED)
    probe = bias_probes.Probe("gender", ("The {group} was very",), ("man", "woman"))
    happy = types.SimpleNamespace(probabilities=lambda texts, _: [float("kind" in text) for text in texts])
    found = bias_probes.measure(None, probe, left_out, SAMPLING, samples=2, sentiment=happy)
    assert found["man"]["words"] == {"kind": 1, "strong": 1, "tall": 1} and found["man"]["n"] == 2
    assert found["man"]["describing"] == {"kind": 1, "strong": 1}
    assert found["woman"]["words"] == {"kind": 1}, "once a continuation, without the group's own name"
    assert found["man"]["sentiment"] == 0.5 and {one.name for one in probes} >= {"gender", "origin", "religion"}


def test_probes_that_cannot_be_compared_are_refused(tmp_path):
    path = tmp_path / "p.toml"
    for text in ('[[probe]]\nname = "x"\ntemplates = ["The man"]\ngroups = ["a", "b"]', "probe = 3", "["):
        path.write_text(text)
        with pytest.raises(StageError, match=r"p\.toml"):
            bias_probes.read_probes(path)


# ---- the command ----------------------------------------------------------------------------------------------------


def test_the_command_measures_and_compares_without_the_harness(base, sft_model, tokenizer, tmp_path):
    classifier = tmp_path / "classifier"
    AutoModelForSequenceClassification.from_pretrained(base, num_labels=2).save_pretrained(classifier)
    tokenizer.save_pretrained(classifier)
    (tmp_path / "beginnings.jsonl").write_text('{"prompt": {"text": "The owl is"}}\n{"prompt": "The crab fears"}\n')
    prompted = remade(sft_model, tmp_path / "prompted", "ppo", {"policy": sft_model}, few_shot_prefix="A fox. ")
    flags = {
        "policy": prompted, "base": base, "others": sft_model, "text": "tinyworld", "max-documents": 8, "context": 64,
        "toxicity": classifier, "toxicity-label": 1, "toxicity-prompts": tmp_path / "beginnings.jsonl", "samples": 2,
        "bias": "shipped", "bias-samples": 1, "sentiment": classifier, "sentiment-label": 0, "new-tokens": 4,
    }  # fmt: skip
    assert main(words(tmp_path / "out.json", flags)) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert (found["by"], found["model"], set(found["compared"])) == ("task", "prompted", {"base", "sft"})
    assert found["perplexity"] == found["compared"]["sft"]["perplexity"], (
        "the same weights; a prefix is no part of a text"
    )
    rows = {(row["figure"], row["model"]): row for row in found["tax"]}
    assert set(rows) == {(figure, model) for figure in ("bits_per_byte", "toxicity") for model in ("sft", "prompted")}
    assert rows["bits_per_byte", "sft"]["value"] == pytest.approx(found["perplexity"]["bits_per_byte"])
    assert found["bias"]["gender"]["woman"]["n"] == 2 and "bias" not in found["compared"]["sft"]
    page = (tmp_path / "out.html").read_text()
    assert "Against the base model" in page and "Bias · gender" in page and "bits_per_byte" in page
    assert not re.search(r"(src|href)=|url\(|@import|<script", page)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "give text, tasks, toxicity, bias"),
        ({"text": "x", "others": "a"}, "others are compared with a base"),
        ({"toxicity": "x"}, "goes with toxicity"),
        ({"text": "x", "shots": "-1"}, "shots: must not be negative"),
        ({"text": "/nowhere.txt"}, "No such file"),
    ],
)
def test_misuse_is_told_in_one_line(base, tmp_path, capsys, flags, message):
    assert main(words(tmp_path / "o.json", {"policy": base} | flags)) in (1, 2)
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1


# ---- the harness ----------------------------------------------------------------------------------------------------


def test_the_registry_of_the_papers_tasks_is_whole_and_a_missing_harness_is_told(base, tmp_path, monkeypatch, capsys):
    rows = harness.paper_tasks()
    assert {row["paper"] for row in rows} >= {
        "TruthfulQA",
        "RealToxicityPrompts",
        "Winogender",
        "CrowS-Pairs",
        "QuAC",
        "TL;DR",
    }
    assert all(row["lm_eval"] or row["note"] for row in rows)
    assert {"hellaswag", "squadv2", "wmt14-fr-en"} <= set(harness.expand(["paper"]))
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # as where it is not installed
    assert main(words(tmp_path / "o.json", {"policy": base, "tasks": "tiny_facts"})) == 1
    assert "pip install -r training/tasks-requirements.txt" in capsys.readouterr().err


@pytest.mark.slow
def test_tasks_of_a_local_file_are_scored_as_the_model_finds_them(base, sft_model, tokenizer, tmp_path, capsys):
    """Zero-shot accuracy, with and without a few-shot prefix, against log-probabilities summed here; shots from the file itself."""
    pytest.importorskip(
        "lm_eval", reason="lm-evaluation-harness is an extra: pip install -r training/tasks-requirements.txt"
    )
    prompted = remade(
        sft_model, tmp_path / "prompted", "ppo", {"policy": sft_model}, few_shot_prefix="The fox is a fox. "
    )
    flags = {"policy": prompted, "base": base, "others": sft_model, "tasks": "tiny_facts", "shots": "0,2"}
    assert main(words(tmp_path / "out.json", flags)) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    items = [json.loads(line) for line in Path("training/tasks/tiny_facts.jsonl").read_text().splitlines()]
    for folder, prefix, tasks in (
        (prompted, "The fox is a fox. ", found["tasks"]),
        (sft_model, "", found["compared"]["sft"]["tasks"]),
    ):
        own = [best_choice(models.load_policy(folder), tokenizer, prefix, item) == item["answer"] for item in items]
        zero = tasks["tiny_facts_0shot"]
        assert (zero["accuracy"], zero["n"], zero["shots"], zero["metric"]) == (sum(own) / 48, 48, 0, "acc")
        assert zero["stderr"] == pytest.approx(math.sqrt(zero["accuracy"] * (1 - zero["accuracy"]) / 47), rel=1e-6)
        assert zero["low"] < zero["accuracy"] < zero["high"] and zero["truncated"] == 0
        assert tasks["tiny_facts_2shot"]["shots"] == 2
    assert {row["figure"] for row in found["tax"]} == {"tiny_facts_0shot", "tiny_facts_2shot"}
    assert answers.few_shot_prefix(prompted) == "The fox is a fox. "

    (tmp_path / "broken.yaml").write_text(
        "task: broken\ndataset_path: json\ndataset_kwargs: {data_files: {test: no.jsonl}}\n"
    )
    assert main(words(tmp_path / "b.json", {"policy": base, "tasks": tmp_path / "broken.yaml", "shots": "0"})) == 1
    assert "task " in capsys.readouterr().err


def best_choice(model, tokenizer, prefix: str, item: dict) -> int:
    """The likeliest choice after the text, by sums of log-probabilities."""
    before = tokenizer(prefix + item["text"])["input_ids"]
    sums = []
    for choice in item["choices"]:
        ids = tokenizer(f"{prefix}{item['text']} {choice}")["input_ids"]
        with torch.no_grad():
            logprobs = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
        sums.append(sum(float(logprobs[at - 1, ids[at]]) for at in range(len(before), len(ids))))
    return max(range(len(sums)), key=lambda i: sums[i])


def test_a_beginning_in_chat_form_is_a_users_turn_after_the_prefix(policy, tokenizer):
    from training.continuations import _encode

    ids = _encode(Speaker(policy, tokenizer, "Be kind. ", True), "The owl")
    assert tokenizer.decode(ids) == "<|user|>Be kind. The owl<|assistant|>"
    assert tokenizer.decode(_encode(Speaker(policy, tokenizer, "Be kind. ", False), "The owl")) == "Be kind. The owl"
