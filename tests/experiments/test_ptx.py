"""The experiment's arithmetic against numbers worked out by hand; the experiment itself takes too long for a test."""

import json
import xml.etree.ElementTree as ElementTree
from collections import Counter

import pytest
import torch

from tests.experiments import chart, ptx
from training import corpus, data, models, packing, pretrain, tinyworld


def test_give_back_by_hand():
    """PPO raises the loss from 1.0 to 1.5; 1.1 gives back 0.4 of 0.5, and 0.9 more than all of it."""
    losses = {"init": 1.0, "ppo": 1.5, "ptx": 1.1, "control": 0.9}
    assert ptx.give_back(losses, "ptx") == pytest.approx(0.8)
    assert ptx.give_back(losses, "control") == pytest.approx(1.2)


def test_a_paired_interval_by_hand():
    """Differences 1, 2, 3: mean 2, deviation 1, half width 1.96 / √3."""
    found = ptx.paired_interval([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert found == pytest.approx({"difference": 2.0, "low": 2 - 1.96 / 3**0.5, "high": 2 + 1.96 / 3**0.5, "n": 3})


def seed_of(**gold):
    losses = {"init": 1.0, "ppo": 1.5, "ptx": 1.1, "control": 0.9}
    each = dict.fromkeys(("ppo", "ptx", "control"), 1.0)
    fields = {
        "seed": 0,
        "lm_loss": losses,
        "kl": each,
        "gradient_ratio": 0.5,
        "lm_loss_by_part": dict.fromkeys(("sft", "ppo", "ptx", "control"), dict.fromkeys(ptx.PARTS, 0.25)),
        "gold": gold,
        "cases": ["a", "a", "b", "b"],
    }
    return fields | {"give_back": 0.8, "give_back_control": 1.2}


def test_the_verdict_pairs_prompts_and_tells_use_cases_apart():
    """Against SFT's 2: PPO wins one and a half of case a, PPO-ptx half; on case b both win everything."""
    seed = seed_of(sft=[2, 2, 2, 2], ppo=[3, 2, 4, 4], ptx=[2, 1, 4, 4], control=[1, 2, 3, 4])
    intervals = ptx.verdict([seed, seed])["intervals"]
    assert intervals["gold reward"]["difference"] == pytest.approx(-0.5)
    assert intervals["wins over SFT, a"]["difference"] == pytest.approx(-0.5)
    assert intervals["wins over SFT, a"]["n"] == 4
    assert intervals["wins over SFT, b"] == {"difference": 0.0, "low": 0.0, "high": 0.0, "n": 4}
    table = ptx.table([seed, seed | {"seed": 1, "give_back": 0.7}])
    assert "| 0 | 1.000 | 1.500 | 1.100 | 0.900 | 80% | 120% | 2.00, 3.25, 2.75, 2.50 | -0.500 [" in table
    assert "| mean | | | | | 75% | 120% |" in table
    assert "| wins over SFT, a | 0.750 | 0.250 | -0.500 [" in table
    assert "| answers | 1 | 0.250 | 0.250 | 0.250 | 0.250 |" in table


def test_no_worse_is_read_in_two_ways():
    """Gold reward 0.05 lower on average: the same on every prompt, within the margin and below 0; else past both."""
    ppo = [3, 3, 4, 4]
    for ptx_gold, readings in (([2.95, 2.95, 3.95, 3.95], "yes | no"), ([2.8, 3.1, 3.8, 4.1], "no | yes")):
        table = ptx.table([seed_of(sft=[2] * 4, ppo=ppo, ptx=ptx_gold, control=[1] * 4)])
        assert next(line for line in table.splitlines() if line.startswith("| gold reward")).endswith(
            f"| 4 | {readings} |"
        )


def test_plain_text_has_no_dialogue_and_its_loss_stands_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(ptx, "DOCUMENTS", 60)
    monkeypatch.setattr(ptx, "HELD_OUT", 12)
    file = ptx.write_plain_text(tmp_path / "plain.jsonl", seed=0)
    held_out = list(tinyworld.documents(12, ptx.OTHER_SEED))
    plain = [text for text in held_out if isinstance(text, str)]
    texts = [json.loads(line)["text"] for line in file.read_text().splitlines()]
    assert texts == plain + [text for text in tinyworld.documents(60, 0) if isinstance(text, str)]
    small = {"vocab_size": 400, "width": 16, "layers": 1, "heads": 2, "mlp_width": 32}
    steps = {"documents": 60, "valid_documents": 5, "row_tokens": 256, "batch_rows": 2, "steps": 2, "warmup_steps": 1}
    folder = pretrain.run(pretrain.Config(out=str(tmp_path / "base"), **small, **steps))
    found = ptx.losses_by_part(folder, seed=0)
    model, tokenizer = models.load_policy(folder), models.load_tokenizer(folder)
    for name, documents in (("plain", plain), ("all", held_out)):
        ids = corpus.encode_documents(tokenizer, documents, 256, "raise", Counter())
        rows = packing.pack(ids, 256, tokenizer.pad_token_id)
        assert found[name] == pytest.approx(corpus.mean_loss(model, rows, 4, torch.device("cpu")), abs=1e-4)
    answers = []
    for document in held_out:
        if not isinstance(document, str):
            asked, ids = (
                data.encode_prompt(tokenizer, document[:1]),
                data.encode_dialogue(tokenizer, *turns(document)).ids,
            )
            logits = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            answers += [-logits[i - 1, ids[i]].item() for i in range(len(asked), len(ids))]
    assert found["answers"] == pytest.approx(ptx.mean(answers), abs=1e-4)


def turns(document):
    return document[:1], document[1]["content"]


def test_a_curve_scores_each_rollout_by_the_hidden_preference(tmp_path):
    ask = "Write a story about a fox in the garden with a lamp and some honey."
    good = "A fox went to the garden. It found a lamp. It ate some honey."
    rows = [
        {"kl": 0.0, "reward": 0.1, "samples": [{"prompt": ask, "response": good}, {"prompt": ask, "response": ""}]},
        {"kl": 1.0, "reward": 0.9, "samples": [{"prompt": ask, "response": good}]},
    ]
    (tmp_path / "training_log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = ptx.curve(tmp_path)
    assert second["gold"] == pytest.approx(2 * first["gold"])
    assert (second["kl"], second["proxy"]) == (1.0, 0.9)


def test_charts_are_whole_and_hold_every_point():
    lines = [("β = 0", [(0.0, 1.0), (3.0, -2.0), (7.0, 4.0)]), ("β < 1", [(0.0, 0.5), (2.0, 0.25)])]
    root = ElementTree.fromstring(chart.side_by_side([("Proxy", "reward", lines)] * 2, "KL", "what it shows"))
    paths = [e.get("d") for e in root.iter("{http://www.w3.org/2000/svg}path") if e.get("fill") == "none"]
    assert len(paths) == 4
    numbers = [float(n) for path in paths for n in path[1:].split()]
    assert min(numbers) >= 0
    assert max(numbers) <= chart.WIDTH
    texts = [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "β < 1" in texts
