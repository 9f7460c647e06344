"""The gates: a good policy passes, and policies collapsed on purpose fail, each by the gate meant for it."""

import random

import pytest

from tests.loop import gates, world
from training import gate, intervals, tinyworld

PROMPTS = world.unseen_prompts(500, seed=0)


def answer_all(seed, coverage, courteous):
    rng = random.Random(seed)
    return [tinyworld.draw_answer(tinyworld.read_ask(row["prompt"]), rng, coverage, courteous) for row in PROMPTS]


BASE, SFT = answer_all(1, 0.5, 0.1), answer_all(2, 0.85, 0.35)


def report_of(ppo_texts, **figures):
    """A loop's report with these answers as the PPO policy's."""
    measured = gates.KL_BOUND - 1, {"gold_accuracy": 0.8}
    report = world.gold_report(PROMPTS, {"base": BASE, "sft": SFT, "ppo": ppo_texts})
    return report | {"kl": measured[0], "rm": measured[1]} | figures


def failed(report):
    return {verdict.name for verdict in gates.check(report) if not verdict.holds}


def test_a_better_policy_passes_every_gate():
    assert failed(report_of(answer_all(3, 0.99, 0.99))) == set()


def test_a_policy_that_says_the_same_pleasantry_to_everything_fails():
    names = failed(report_of(["Of course! I hope you like it. Have a nice day!"] * len(PROMPTS)))
    assert {"PPO beats SFT", "distinct responses", "dependence on the prompt"} <= names


def test_a_policy_that_tells_the_best_story_whatever_is_asked_fails():
    story = "Gladly! A fox went to the cave. It had a lamp and some soup."
    names = failed(report_of([story] * len(PROMPTS)))
    assert {"PPO beats SFT", "distinct responses", "dependence on the prompt"} <= names


def test_varied_answers_to_other_prompts_fail_by_their_dependence_on_the_prompt():
    shuffled = answer_all(3, 0.99, 0.99)
    names = failed(report_of(shuffled[1:] + shuffled[:1]))
    assert "dependence on the prompt" in names
    assert "distinct responses" not in names


def test_a_policy_that_lost_one_use_case_fails_there():
    texts = [
        good if row["use_case"] == tinyworld.STORY else "Gladly!"
        for row, good in zip(PROMPTS, answer_all(3, 0.99, 0.99), strict=True)
    ]
    names = failed(report_of(texts))
    assert "PPO beats SFT, open_qa" in names
    assert "PPO beats SFT, generation" not in names


@pytest.mark.parametrize(
    ("figures", "name"),
    [
        ({"kl": gates.KL_BOUND + 0.1}, "KL to the reference (nats)"),
        ({"kl": float("nan")}, "KL to the reference (nats)"),
        ({"rm": {"gold_accuracy": 0.7}}, "reward model agrees with gold"),
        ({"prompts": 499}, "prompts evaluated"),
    ],
)
def test_each_figure_has_its_gate(figures, name):
    assert failed(report_of(answer_all(3, 0.99, 0.99), **figures)) == {name}


def test_win_rates_by_hand():
    rates = gates.win_rates([1, 2, 3, 0], [0, 2, 1, 5], ["a", "a", "b", "b"])
    assert rates["rate"] == (1 + 0.5 + 1 + 0) / 4
    assert rates["by_use_case"]["a"]["rate"] == 0.75
    assert rates["by_use_case"]["b"]["n"] == 2


def test_wilson_interval_by_hand():
    """40 of 50: 0.670 to 0.888 (Wilson 1927, as in Brown, Cai and DasGupta 2001)."""
    rate = intervals.share([1.0] * 40 + [0.0] * 10)
    assert (round(rate["low"], 3), round(rate["high"], 3)) == (0.670, 0.888)


def test_evaluation_prompts_are_unseen_and_hold_both_use_cases():
    seen = {row["prompt"] for row in tinyworld.prompts(world.PROMPTS, 0)}
    assert not seen & {row["prompt"] for row in PROMPTS}
    assert sum(row["use_case"] == tinyworld.FACTS for row in PROMPTS) > 100


def test_rules_are_the_same_from_a_file(tmp_path):
    path = tmp_path / "gate.toml"
    path.write_text(gates.as_toml(gates.RULES, "evaluations.hidden preference"))
    read = gate.read_rules(path).rules
    report = report_of(answer_all(3, 0.99, 0.99))
    found = gate.check({"evaluations": {"hidden preference": report}}, read)
    assert [(v.name, v.value, v.holds) for v in found] == [(v.name, v.value, v.holds) for v in gates.check(report)]
    assert len(found) == len(gates.RULES) + 1 and all(verdict.holds for verdict in found)


def test_a_paired_difference_by_hand():
    found = gates.paired_difference([1, 2, 3], [0, 2, 1])  # 1, 0, 2: mean 1, deviation 1, 1.96/√3
    assert found == {
        "mean": 1,
        "low": pytest.approx(-0.1316, abs=1e-4),
        "high": pytest.approx(2.1316, abs=1e-4),
        "n": 3,
    }
    assert gates.points([1, 2, 3], [0, 2, 4]) == [1, 0.5, 0]
