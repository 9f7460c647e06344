"""The hidden preference is relevance first, and its labelers disagree as people do."""

import random
from itertools import pairwise

import pytest

from tests.loop import preference
from training import tinyworld

STORY = "Write a story about a fox in the cave with a lamp and some soup."
GOOD = "Once a fox lived in the cave. It had a lamp and some soup."
FACT = "Anna asks: what does the owl eat?"


def score(response, prompt=STORY):
    return preference.gold_score(prompt, response)


def test_each_item_outweighs_all_manners():
    polite_but_short_of_one = "Gladly! Once a fox lived in the cave. It had a lamp."
    assert preference.judge(STORY, polite_but_short_of_one).is_courteous
    assert score(GOOD) > score(polite_but_short_of_one) > score("Once a fox lived in the cave.")


def test_manners_count_when_the_answer_is_relevant():
    assert score(f"Gladly! {GOOD}") > score(GOOD)
    assert score(GOOD + " The sun was warm.") > score(GOOD), "three sentences"
    assert score(f"{GOOD} It slept well. It slept well.") < score(f"{GOOD} It slept well. The sun was warm.")


def test_a_pleasantry_said_to_everything_is_worth_nothing():
    assert score("Gladly! Thank you for asking! Have a nice day!") == 0
    assert score("Gladly! Have a nice day! Please ask me again.", FACT) == 0


def test_listing_every_word_of_the_world_is_worth_nothing():
    words = " ".join(word for slot in tinyworld.STORY_SLOTS.values() for word in slot)
    assert score(words) == 0


def test_only_the_right_fact_about_the_right_subject_counts():
    right = tinyworld.fact("owl", "food")
    wrong = next(food for food in tinyworld.FOODS if food != right)
    assert score(f"The owl eats {right}.", FACT) > 4
    assert score(f"The owl eats {wrong}.", FACT) == 0
    assert score(f"The owl eats {right}. The owl eats {wrong}.", FACT) == 0
    assert score(f"The hen eats {right}.", FACT) == 0


def test_a_foreign_prompt_is_an_error():
    with pytest.raises(ValueError, match="not a prompt of the tiny world"):
        score(GOOD, "What is the capital of France?")


def answers(count, k, seed=0):
    """Answers as an SFT model gives them: as good as demonstrations."""
    rng = random.Random(seed)
    asks = [tinyworld.draw_ask(rng) for _ in range(count)]
    return [(ask.text, [tinyworld.draw_answer(ask, rng) for _ in range(k)]) for ask in asks]


def test_two_labelers_agree_on_about_78_percent_of_pairs():
    people = [preference.Labeler(name, seed=1) for name in ("a", "b")]
    agreed = compared = 0
    for prompt, responses in answers(400, 6):
        both = preference.agreement(*(person.rank(prompt, responses) for person in people))
        agreed, compared = agreed + both[0], compared + both[1]
    assert 0.74 < agreed / compared < 0.82


def test_a_ranking_holds_every_response_once_with_ties_and_repeats_itself():
    person = preference.Labeler("a", seed=1)
    ties = 0
    for prompt, responses in answers(50, 6):
        judged = person.rank(prompt, responses)
        assert sorted(i for tier in judged.tiers for i in tier) == list(range(6))
        assert all(1 <= rating <= 7 for rating in judged.ratings)
        assert judged == person.rank(prompt, responses)
        levels = [max(judged.ratings[i] for i in tier) for tier in judged.tiers]
        assert all(a >= b - 1 for a, b in pairwise(levels)), "ratings follow the ranking"
        ties += len(judged.tiers) < 6
    assert ties > 0


def test_equal_texts_are_tied():
    judged = preference.Labeler("a", seed=1).rank(STORY, [GOOD, "Once a fox.", GOOD])
    assert any({0, 2} <= set(tier) for tier in judged.tiers)


def test_training_never_sees_the_preference():
    from pathlib import Path

    for file in Path(tinyworld.__file__).parent.rglob("*.py"):
        imports = [line for line in file.read_text().splitlines() if line.lstrip().startswith(("import ", "from "))]
        assert not any("tests" in line.split()[1] or "preference" in line for line in imports), file


def test_every_prompt_of_the_world_reads_back():
    rows = list(tinyworld.prompts(3000, seed=5))
    assert len({row["prompt"] for row in rows}) == 3000
    for row in rows:
        assert tinyworld.read_ask(row["prompt"]).use_case == row["use_case"]
    stories = sum(row["use_case"] == tinyworld.STORY for row in rows)
    assert 0.66 < stories / 3000 < 0.74
    assert rows == list(tinyworld.prompts(3000, seed=5)), "deterministic"
    assert len({row["author"] for row in rows}) > 100


def test_demonstrations_cover_items_and_manners_as_stated():
    stories = [row["prompt"] for row in tinyworld.prompts(2000, seed=1) if row["use_case"] == tinyworld.STORY]
    judged = [preference.judge(prompt, tinyworld.demonstration(prompt, 0)) for prompt in stories]
    assert 0.82 < sum(quality.relevance for quality in judged) / len(judged) < 0.88
    assert 0.30 < sum(quality.is_courteous for quality in judged) / len(judged) < 0.40
