"""The tiny world: text that the project makes itself, so that the whole loop runs without a network and means something.

A story prompt names four items (hero, place, thing, meal; twelve words each, 20,736 combinations) that the answer must
use; a facts prompt asks for one of 48 facts that stand in the pretraining text. 70 % of the pretraining text is in
question/answer form of *mixed* quality, so that the base model is no straw man; demonstrations are on topic but cover each
item only 85 % of the time, vary in length, and 35 % are courteous: there is room for feedback to teach something.

What people prefer in this world is *not* here: the hidden preference lives in tests/loop/preference.py, and nothing in
training/ may import it. Everything below is a pure function of its seed.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass

Message = dict[str, str]

STORY, FACTS = "generation", "open_qa"  # use cases, by the words of Table 1 of the InstructGPT paper
STORY_SHARE = 0.7
ITEM_COVERAGE = 0.85
COURTEOUS_SHARE = 0.35
DIALOGUE_SHARE = 0.7

HEROES = ["fox", "bear", "rabbit", "mouse", "wolf", "duck", "frog", "horse", "cat", "dog", "goat", "pig"]
PLACES = [
    "forest",
    "castle",
    "village",
    "desert",
    "garden",
    "harbor",
    "cave",
    "valley",
    "market",
    "island",
    "tower",
    "meadow",
]
THINGS = ["lamp", "key", "ring", "map", "drum", "kite", "book", "coin", "bell", "mirror", "rope", "hat"]
MEALS = ["bread", "soup", "cake", "honey", "cheese", "apples", "rice", "beans", "corn", "nuts", "pie", "fish"]
STORY_SLOTS = {"hero": HEROES, "place": PLACES, "thing": THINGS, "meal": MEALS}

SUBJECTS = ["owl", "crab", "lion", "whale", "bat", "snail", "tiger", "deer", "eagle", "seal", "hen", "ant"]
FOODS = ["grass", "seeds", "leaves", "worms", "shrimp", "roots", "berries", "flies", "moss", "eggs", "clams", "mud"]
HOMES = ["swamp", "ocean", "jungle", "barn", "burrow", "reef", "cliff", "nest", "lake", "tundra", "hill", "river"]
COLORS = ["red", "blue", "green", "white", "black", "brown", "gray", "yellow", "orange", "pink", "gold", "silver"]
ENEMIES = ["hawk", "shark", "snake", "hunter", "spider", "storm", "flood", "winter", "fire", "hyena", "crow", "eel"]
FACT_SLOTS = {"food": FOODS, "home": HOMES, "color": COLORS, "enemy": ENEMIES}
ASKERS = ["Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Iris", "Jack", "Kate", "Leo"]

_QUESTIONS = {
    "food": ["what does the {subject} eat?", "what food does the {subject} like?", "tell me what the {subject} eats."],
    "home": [
        "where does the {subject} live?",
        "what is the home of the {subject}?",
        "tell me where the {subject} lives.",
    ],
    "color": ["what color is the {subject}?", "which color has the {subject}?", "tell me the color of the {subject}."],
    "enemy": ["what does the {subject} fear?", "what scares the {subject}?", "tell me what the {subject} fears."],
}
_ASKING = ["{asker} asks: ", "{asker} wonders: ", "A question from {asker}: "]
_STATEMENTS = {
    "food": "The {subject} eats {value}.",
    "home": "The {subject} lives in the {value}.",
    "color": "The {subject} is {value}.",
    "enemy": "The {subject} fears the {value}.",
}
_REQUESTS = [
    "Write a story about a {hero} in the {place} with a {thing} and some {meal}.",
    "Tell me a story with a {hero}, the {place}, a {thing} and some {meal}.",
    "I want a story about some {meal}, a {thing}, a {hero} and the {place}.",
    "Please make up a story: the {place}, a {hero}, some {meal} and a {thing}.",
]
_OPENINGS = [
    "Once a {hero} lived in the {place}.",
    "There was a {hero} in the {place}.",
    "A {hero} went to the {place}.",
]
_HERO_ONLY = ["Once there was a {hero}.", "A {hero} went for a walk."]
_PLACE_ONLY = ["Once upon a time in the {place}.", "It was quiet in the {place}."]
_NOBODY = ["Once there was a friend.", "Long ago it was quiet."]
_THING = ["One day it found a {thing}.", "It had a {thing}.", "It wanted a {thing}."]
_MEAL = ["It ate some {meal}.", "Then it made some {meal}.", "A friend brought some {meal}."]
_BOTH = ["It had a {thing} and some {meal}."]
_FILLERS = ["The sun was warm.", "Everyone was glad.", "The night was long.", "It slept well.", "They danced all day."]
_FACT_FILLERS = ["That is well known.", "Many people ask this.", "It is an animal.", "You can see it at the zoo."]
POLITE_OPENINGS = ["Of course!", "Gladly!", "Thank you for asking!"]
POLITE_CLOSINGS = ["I hope you like it.", "Have a nice day!", "Please ask me again."]

# How well the answers in the pretraining text fit their questions: (share, coverage of each item, courteous share).
_DIALOGUE_QUALITY = [(0.4, 0.95, 0.35), (0.3, 0.5, 0.15), (0.3, 0.0, 0.05)]


@dataclass(frozen=True)
class Ask:
    """What one prompt asks for: four items of a story, or one fact about a subject."""

    use_case: str
    text: str
    items: dict[str, str]  # slot → required word
    subject: str | None = None


def fact(subject: str, slot: str) -> str:
    """The word that is true of the subject, the same in every world: 48 facts, each value used once per slot."""
    step = {"food": 1, "home": 5, "color": 7, "enemy": 11}[slot]
    return FACT_SLOTS[slot][(SUBJECTS.index(subject) * step + step) % len(SUBJECTS)]


def draw_ask(rng: random.Random) -> Ask:
    """One prompt: 70 % ask for a story with four items, 30 % for a fact."""
    return _draw_story(rng) if rng.random() < STORY_SHARE else _draw_fact(rng)


def _draw_story(rng: random.Random) -> Ask:
    items = {slot: rng.choice(words) for slot, words in STORY_SLOTS.items()}
    return Ask(STORY, rng.choice(_REQUESTS).format(**items), items)


def _draw_fact(rng: random.Random) -> Ask:
    subject, slot, asker = rng.choice(SUBJECTS), rng.choice(list(FACT_SLOTS)), rng.choice(ASKERS)
    question = rng.choice(_QUESTIONS[slot]).format(subject=subject)
    text = rng.choice(_ASKING).format(asker=asker) + question
    return Ask(FACTS, text, {slot: fact(subject, slot)}, subject)


def draw_answer(
    ask: Ask, rng: random.Random, coverage: float = ITEM_COVERAGE, courteous: float = COURTEOUS_SHARE
) -> str:
    """An answer that uses each required item with probability `coverage`, of one to seven sentences."""
    body = _story(ask, rng, coverage) if ask.use_case == STORY else _fact_answer(ask, rng, coverage)
    if rng.random() < 0.12:
        body.insert(rng.randrange(len(body)) + 1, rng.choice(body))
    if rng.random() < courteous:
        polite_first = rng.random() < 0.5
        body = [rng.choice(POLITE_OPENINGS), *body] if polite_first else [*body, rng.choice(POLITE_CLOSINGS)]
    return " ".join(body)


def _story(ask: Ask, rng: random.Random, coverage: float) -> list[str]:
    """Sentences of a story. A missed item is left out, or another word of its slot stands in its place."""
    words = {}
    for slot, word in ask.items.items():
        if rng.random() < coverage:
            words[slot] = word
        elif rng.random() < 0.5 or coverage == 0.0:
            words[slot] = rng.choice(STORY_SLOTS[slot])
    first = {(True, True): _OPENINGS, (True, False): _HERO_ONLY, (False, True): _PLACE_ONLY, (False, False): _NOBODY}
    sentences = [rng.choice(first["hero" in words, "place" in words])]
    if "thing" in words and "meal" in words and rng.random() < 0.3:
        sentences += _BOTH
    else:
        sentences += [rng.choice(_THING)] * ("thing" in words) + [rng.choice(_MEAL)] * ("meal" in words)
    for _ in range(rng.choice([0, 0, 1, 1, 2, 3])):
        sentences.insert(rng.randrange(len(sentences)) + 1, rng.choice(_FILLERS))
    return [sentence.format(**words) for sentence in sentences]


def _fact_answer(ask: Ask, rng: random.Random, coverage: float) -> list[str]:
    """Sentences about the subject: the fact asked for with probability `coverage`, else a wrong or a different one."""
    ((slot, value),) = ask.items.items()
    assert ask.subject is not None  # noqa: S101 every facts prompt has one
    if rng.random() >= coverage:
        if rng.random() < 0.5:
            value = rng.choice(FACT_SLOTS[slot])
        else:
            slot = rng.choice(list(FACT_SLOTS))
            value = fact(ask.subject, slot)
    sentences = [_STATEMENTS[slot].format(subject=ask.subject, value=value)]
    others = [name for name in FACT_SLOTS if name not in (slot, *ask.items)]
    for _ in range(rng.choice([0, 0, 1, 1, 2, 3])):
        if rng.random() < 0.4:
            other = rng.choice(others)
            sentences.append(_STATEMENTS[other].format(subject=ask.subject, value=fact(ask.subject, other)))
        else:
            sentences.append(rng.choice(_FACT_FILLERS))
    return sentences


def documents(count: int, seed: int) -> Iterator[list[Message] | str]:
    """Pretraining documents: 70 % dialogues (messages) of mixed quality, the rest plain stories and plain facts."""
    rng = random.Random(f"documents {seed}")
    shares, qualities = [q[0] for q in _DIALOGUE_QUALITY], [q[1:] for q in _DIALOGUE_QUALITY]
    for _ in range(count):
        ask = draw_ask(rng)
        if rng.random() < DIALOGUE_SHARE:
            coverage, courteous = rng.choices(qualities, shares)[0]
            answer = draw_answer(ask, rng, coverage, courteous)
            yield [{"role": "user", "content": ask.text}, {"role": "assistant", "content": answer}]
        else:
            yield draw_answer(ask, rng, coverage=1.0, courteous=0.0)


def prompts(
    count: int, seed: int, authors: int | None = None, avoid: Collection[str] = frozenset()
) -> Iterator[dict[str, str]]:
    """Import rows of `count` different prompts, each by one of `authors` people (default: one per eight prompts).

    A row: external_id, prompt, kind, use_case, author. None has a text in `avoid`. Raises ValueError when the world has
    too few prompts.
    """
    rng = random.Random(f"prompts {seed}")
    authors = authors or max(4, count // 8)
    seen = set(avoid)
    for number in range(1, count + 1):
        draw = _draw_story if rng.random() < STORY_SHARE else _draw_fact
        ask = next((ask for ask in (draw(rng) for _ in range(200)) if ask.text not in seen), None)
        if ask is None:
            raise ValueError(f"the tiny world has no {count} different prompts with seed {seed}; ask for fewer")
        seen.add(ask.text)
        author = f"tiny-{seed}-author-{rng.randrange(authors):04d}"
        external_id = f"tiny-{seed}-{number:06d}"
        yield {
            "external_id": external_id,
            "prompt": ask.text,
            "kind": "plain",
            "use_case": ask.use_case,
            "author": author,
        }


def read_ask(text: str) -> Ask:
    """What a prompt of this world asks for, read back from its text. Raises ValueError for any other text."""
    words = text.replace(",", " ").replace(".", " ").replace("?", " ").replace(":", " ").split()
    subjects = [word for word in words if word in SUBJECTS]
    if subjects and ":" in text:
        for slot, forms in _QUESTIONS.items():
            if any(text.endswith(form.format(subject=subjects[0])) for form in forms):
                return Ask(FACTS, text, {slot: fact(subjects[0], slot)}, subjects[0])
    items = {slot: [w for w in words if w in known] for slot, known in STORY_SLOTS.items()}
    if all(len(found) == 1 for found in items.values()):
        return Ask(STORY, text, {slot: found[0] for slot, found in items.items()})
    raise ValueError(f"not a prompt of the tiny world: {text[:80]!r}")


def demonstration(prompt_text: str, seed: int) -> str:
    """The demonstration a simulated labeler writes for a prompt: on topic, each item covered 85 % of the time."""
    return draw_answer(read_ask(prompt_text), random.Random(f"demonstration {seed} {prompt_text}"))
