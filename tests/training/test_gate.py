"""The gate: each kind of rule by hand, and what is missing, not finite or not known never passes."""

import math

import pytest

from training import degeneration
from training.config import ConfigError
from training.contract import all_hold
from training.gate import Rule, check, gather, read_rules, reasons

FIGURES = {
    "model": {
        "kl_after": 4.0,
        "lm_loss_before": 2.0,
        "lm_loss_after": 2.25,
        "nan": math.nan,
        "inf": math.inf,
        "text": "4",
    },
    "parents": {"rm": {"accuracy_test_held_out": 0.7, "is_merged": True}},
    "evaluations": {
        "people, v1.2": {"win_rate": {"low": 0.52}},
        "people": {"by_use_case": {"story": {"low": 0.6}, "open_qa": {"low": 0.4}, "chat": {}}},
        "none": {"by_use_case": {}},
        "task": {
            "tax": [{"task": "a", "difference": 0.01}, {"task": "b.c", "difference": -0.1}],
            "twice": [{"task": "a"}] * 2,
        },
    },
    "serving": {"by_use_case": {"story": {"low": 0.55}, "open_qa": {"low": 0.5}, "chat": {"low": 0.1}}},
}


def verdict_of(**fields):
    (verdict,) = check(FIGURES, [Rule("rule", **fields)])
    return verdict


@pytest.mark.parametrize(
    ("fields", "value", "holds"),
    [
        ({"figure": "model.kl_after", "ceiling": 4.0}, 4.0, True),
        ({"figure": "model.kl_after", "ceiling": 3.99}, 4.0, False),
        ({"figure": "parents.rm.accuracy_test_held_out", "floor": 0.7}, 0.7, True),
        ({"figure": "parents.rm.accuracy_test_held_out", "floor": 0.71}, 0.7, False),
        ({"figure": "model.kl_after", "floor": -5.0, "ceiling": 5.0}, 4.0, True),
        ({"figure": "model.kl_after", "floor": 5.0, "ceiling": 6.0}, 4.0, False),
        ({"figure": "model.lm_loss_after", "minus": "model.lm_loss_before", "ceiling": 0.25}, 0.25, True),
        ({"figure": "model.lm_loss_after", "minus": "model.lm_loss_before", "ceiling": 0.2}, 0.25, False),
        ({"figure": "evaluations.people, v1.2.win_rate.low", "floor": 0.5}, 0.52, True),
        ({"figure": "evaluations.task.tax.b.c.difference", "floor": -0.05}, -0.1, False),
    ],
)
def test_a_rule_by_hand(fields, value, holds):
    verdict = verdict_of(**fields)
    assert (verdict.value, verdict.holds) == (value, holds)
    assert f"{value:.4g}" in verdict.reason


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("model.nan", "not finite (nan)"), ("model.inf", "not finite (inf)"), ("model.gone", "no figure at model.gone"),
        ("nothing.at.all", "no figure"), ("model", "no number"), ("model.text", "no number"), ("model.text.deeper", "no figure"),
        ("parents.rm.is_merged", "no number"), ("evaluations.none.by_use_case.*.low", "no figure"),
        ("evaluations.task.twice.*.difference", "no figure"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("bound", [{"floor": -1e300}, {"ceiling": 1e300}])
def test_what_is_no_finite_figure_never_passes(path, reason, bound):
    for fields in (
        {"figure": path},
        {"figure": "model.kl_after", "minus": path} if "*" not in path else {"figure": path},
    ):
        verdict = verdict_of(**fields, **bound)
        assert (verdict.value, verdict.holds) == (None, False)
        assert reason in verdict.reason


def test_a_star_holds_the_rule_against_every_name_and_a_name_without_the_figure_fails():
    verdicts = check(FIGURES, [Rule("wins", "evaluations.people.by_use_case.*.low", floor=0.5)])
    assert {v.name: v.holds for v in verdicts} == {"wins, chat": False, "wins, open_qa": False, "wins, story": True}
    assert "no figure at evaluations.people.by_use_case.chat.low" in verdicts[0].reason
    tax = check(FIGURES, [Rule("tax", "evaluations.task.tax.*.difference", floor=-0.05)])
    assert {v.name: v.holds for v in tax} == {"tax, a": True, "tax, b.c": False}
    since = Rule("since", "evaluations.people.by_use_case.*.low", minus="serving.by_use_case.*.low", floor=0.0)
    assert [v.value and round(v.value, 9) for v in check(FIGURES, [since])] == [None, -0.1, 0.05]


def test_all_required_rules_must_hold_and_advice_need_not():
    good, bad = Rule("good", "model.kl_after", floor=0.0), Rule("bad", "model.kl_after", floor=9.0)
    advice = Rule("advice", "model.gone", floor=0.0, required=False)
    assert all_hold(check(FIGURES, [good, advice]))
    assert not all_hold(check(FIGURES, [good, bad]))
    assert not all_hold(check(FIGURES, [advice])) and not all_hold([])
    known = [
        Rule("known", path, ceiling=3.0, where_known=True) for path in ("model.gone", "model.nan", "model.kl_after")
    ]
    assert [all_hold(check(FIGURES, [good, each])) for each in known] == [True, False, False]
    assert reasons(check(FIGURES, [good, bad, advice])) == ["bad: 4 lies below the floor of 9."]


def test_the_rules_that_ship_load_and_know_their_text():
    rules = read_rules()
    assert "[[rule]]" in rules.text and len(rules.sha256) == 64
    assert not all_hold(check({}, rules.rules))
    sound = {
        "model": {"kl_after": 4.0},
        "parents": {"rm": {"accuracy_test_held_out": 0.7, "demonstrations_valid_mean": 0.1}},
        "evaluations": {"evaluate": {"policy": {"empty_share": 0, "looping_share": 0, "distinct_responses": 1, "finished": 1}}},
    }  # fmt: skip
    assert all_hold(check(sound, rules.rules)), "a first policy, compared with nothing"
    worse = [
        sound | {"model": {"kl_after": 4.0, "lm_loss_before": 1.0, "lm_loss_after": 6.0}},
        sound | {"model": {"kl_after": -500.0}},
        sound | {"evaluations": sound["evaluations"] | {"people": {"win_rate": {"low": 0.0, "high": 0.05}}}},
        sound | {"evaluations": sound["evaluations"] | {"people": {"win_rate": {"low": None, "high": None}}}},
    ]
    assert [all_hold(check(figures, rules.rules)) for figures in worse] == [False] * 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[rule]]\nname = "a"\nfigure = "model.b"\nfloor = 1\n\n[[rule]]\nname = "c"\nfigure = "model.d"\nceling = 1\n',
         r"gate.toml:6 \(c\): field celing: unknown \(did you mean ceiling\?\)"),
        ('[[rule]]\nname = "a"\nfloor = 1\n', "gate.toml:1 .*field figure: missing"),
        ('[[rule]]\nname = "a"\nfigure = "model.b"\n', "field floor: give a floor"),
        ('[[rule]]\nname = "a"\nfigure = "model.b"\nfloor = nan\n', "field floor: .*nan"),
        ('[[rule]]\nname = "a"\nfigure = "model.b"\nfloor = -inf\n', "field floor: must be finite"),
        ('[[rule]]\nname = "a"\nfigure = "model.b"\nfloor = 2\nceiling = 1\n', "above the ceiling"),
        ('[[rule]]\nname = "a"\nfigure = "model.b..c"\nfloor = 2\n', "field figure: no path"),
        ('[[rule]]\nname = "a"\nfigure = "model.b.*"\nminus = "model.c"\nfloor = 2\n', "field minus"),
        ('[[rule]]\nname = "a"\nfigure = "model.b"\nfloor = 2\nrequired = false\n', "no rule is required"),
        ('[[rule]]\nname = "a"\nfigure = "model.b"\nfloor = 2\nwhere_known = true\n', "no rule is required at all events"),
        ('[[rule]]\nname = "a"\nfigure = "modle.b"\nfloor = 2\n', "field figure: begins with one of model, parents"),
        ("[[rules]]\n", "field rules: unknown"),
        ("rule = 1\n", "field rule: rules are written as"),
        ("", "no rule is required"),
        ("[[rule]\n", r"gate.toml: .*line 1"),
    ],
)  # fmt: skip
def test_a_file_it_does_not_understand_is_refused_by_place(tmp_path, text, said):
    file = tmp_path / "gate.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_rules(file)


class Registry:
    """What `gather` asks the web half."""

    manifests = {
        "new": {"metrics": {"kl_after": 1}, "parents": {"rm": {"name": "judge"}}},
        "judge": {"metrics": {"accuracy": 0.7}, "parents": {}},
        "old": {"metrics": {"kl_after": 2}, "parents": {}},
    }

    def model(self, name):
        return {"manifest": self.manifests[name]}

    def evaluations(self, name):
        found = [{"name": "people", "measured_by": "people", "metrics": {"of": name, "n": n}} for n in (2, 1)]
        return [{"name": "people", "measured_by": "model", "metrics": {"of": name, "n": 3}}, *found]

    def serving_model(self):
        return {"name": "old"}


def test_figures_are_gathered_from_manifests_parents_newest_evaluations_and_what_serves():
    figures = gather(Registry(), "new")
    assert figures["model"] == {"kl_after": 1} and figures["parents"] == {"rm": {"accuracy": 0.7}}
    assert figures["evaluations"] == {"people": {"of": "new", "n": 2}}
    assert figures["serving"]["model"] == {"kl_after": 2} and figures["serving"]["evaluations"]["people"]["of"] == "old"


def test_looping_and_empty_texts_by_hand():
    """ "a b a b a b" has five pairs of words, two of them different."""
    assert degeneration.repeated_share("a b a b a b", 2) == pytest.approx(0.6)
    assert degeneration.repeated_share("a b c", 4) == 0.0
    figures = degeneration.figures(["", " \n", "one two three four five", "la la la la la la la la"])
    assert (figures["empty_share"], figures["looping_share"]) == (0.5, 0.25)
    assert figures["repeated_share"] == pytest.approx(0.8 / 4)
