"""Prompts of the gateway and the playground become prompts for labeling, within the limits of the recipe."""

import threading

import pytest
from django.db import connection

from labeling.actions import gateway_keys
from labeling.actions.capture import Asker, Outcome, capture
from labeling.models import Author, GatewayKey, Prompt
from labeling.models.prompts import split_of

pytestmark = pytest.mark.django_db


def ask(text: str = "Name a fruit.") -> list[dict]:
    return [{"role": "user", "content": text}]


@pytest.fixture
def key():
    return gateway_keys.create(organization="Acme", name="app", may_train=True, by=None)[0]


@pytest.fixture
def asker(key):
    return Asker(key_id=key.pk, organization="Acme", user="u-1")


def test_a_prompt_is_kept_with_its_author(asker):
    assert capture(messages=ask(), asker=asker, metadata={"model": "ppo-1"}) == Outcome.CAPTURED
    prompt = Prompt.objects.get()
    assert (prompt.source, prompt.organization, prompt.metadata) == ("playground", "Acme", {"model": "ppo-1"})
    assert prompt.messages == ask()
    assert prompt.author.key == "gateway:Acme/u-1"
    assert prompt.split == prompt.author.split == split_of("gateway:Acme/u-1")


def test_the_same_prompt_is_kept_once_whoever_asks(asker, key):
    other = Asker(key_id=key.pk, organization="Acme", user="u-2")
    assert capture(messages=ask(), asker=asker) == Outcome.CAPTURED
    assert capture(messages=ask(), asker=asker) == Outcome.DUPLICATE
    assert capture(messages=ask(), asker=other) == Outcome.DUPLICATE
    assert Prompt.objects.get().author.key == "gateway:Acme/u-1"


def test_an_author_gives_at_most_200(asker, key, settings):
    assert settings.PROMPTS_PER_AUTHOR == 200
    settings.PROMPTS_PER_AUTHOR = 3
    outcomes = [capture(messages=ask(f"Question {n}?"), asker=asker) for n in range(5)]
    assert outcomes == [Outcome.CAPTURED] * 3 + [Outcome.AUTHOR_FULL] * 2
    other = Asker(key_id=key.pk, organization="Acme", user="u-2")
    assert capture(messages=ask("Question 3?"), asker=other) == Outcome.CAPTURED


@pytest.mark.django_db(transaction=True)
def test_the_limit_of_an_author_holds_at_once(asker, settings):
    settings.PROMPTS_PER_AUTHOR = 4
    outcomes, start = [], threading.Barrier(6)

    def run(number: int) -> None:
        start.wait()
        for n in range(3):
            outcomes.append(capture(messages=ask(f"Question {number} {n}?"), asker=asker))
        connection.close()

    threads = [threading.Thread(target=run, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 18
    assert outcomes.count(Outcome.CAPTURED) == Prompt.objects.count() == 4


@pytest.mark.parametrize(
    ("messages", "outcome"),
    [
        (ask("x" * 4001), Outcome.TOO_LONG),
        ([*ask("x" * 2001), {"role": "assistant", "content": "y" * 1000}, *ask("z" * 1000)], Outcome.TOO_LONG),
        ([*ask(), {"role": "assistant", "content": "Apple"}], Outcome.UNUSABLE),
        (ask("  "), Outcome.UNUSABLE),
        (ask("\x00"), Outcome.UNUSABLE),
        (ask("\ud800"), Outcome.UNUSABLE),
        ([], Outcome.UNUSABLE),
    ],
)
def test_what_is_not_kept(asker, messages, outcome):
    assert capture(messages=messages, asker=asker) == outcome
    assert not Prompt.objects.exists()
    assert not Author.objects.exists()


def test_consent_that_was_taken_back_holds_for_what_waits(asker):
    GatewayKey.objects.update(may_train=False)
    assert capture(messages=ask(), asker=asker) == Outcome.WITHDRAWN
    assert not Prompt.objects.exists()


def test_authors_of_two_organizations_never_meet():
    keys = {
        Asker(organization="a/b", user="c").author_key,
        Asker(organization="a", user="b/c").author_key,
        Asker(organization="a", user="").author_key,
        Asker(organization="a/", user="").author_key,
        Asker(organization="a", user="é" * 200).author_key,
        Asker(organization="a", user="é" * 199).author_key,
        Asker(person_id=1).author_key,
    }
    assert len(keys) == 7
    assert all(len(key) <= 200 for key in keys)


def test_people_are_authors_and_held_out_labelers_are_not(labeler, heldout_labeler, reviewer):
    assert capture(messages=ask("One?"), asker=Asker(person_id=labeler.pk)) == Outcome.CAPTURED
    assert Prompt.objects.get().author.user == labeler
    assert capture(messages=ask("Two?"), asker=Asker(person_id=heldout_labeler.pk)) == Outcome.WITHDRAWN
    reviewer.is_active = False
    reviewer.save()
    assert capture(messages=ask("Three?"), asker=Asker(person_id=reviewer.pk)) == Outcome.WITHDRAWN
    assert Prompt.objects.count() == 1


def test_a_person_who_is_an_author_already_stays_that_author(labeler):
    author = Author.objects.create(key="writes prompts", split="test", user=labeler)
    capture(messages=ask(), asker=Asker(person_id=labeler.pk))
    assert Prompt.objects.get().author == author
    assert Prompt.objects.get().split == "test"
