"""The experiment's arithmetic against numbers worked out by hand; the experiment itself takes too long for a test."""

import json
import xml.etree.ElementTree as ElementTree

import pytest

from tests.experiments import chart, ptx


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
