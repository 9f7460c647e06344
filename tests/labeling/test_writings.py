"""Labelers write prompts: drafts kept, handed in once, in the pool as theirs; use cases kept by researchers."""

import pytest
from django.urls import reverse

from labeling.actions import intake, pauses, tasks
from labeling.models import Prompt, Response, UseCase, Writing
from tests import builders

pytestmark = pytest.mark.django_db
SHOTS = {
    "instruction": "Say the feeling.", "query-1": "I won!", "response-1": "glad", "query-2": "I lost.", "response-2": "sad",
    "query-3": "So what.", "response-3": "calm",
}  # fmt: skip


def begun(client, kind: str = "plain") -> Writing:
    address = client.post(reverse("writing_new"), {"kind": kind}).url
    return Writing.objects.get(uuid=address.rstrip("/").rpartition("/")[2])


def post(client, what: str, writing: Writing, fields: dict, **more):
    return client.post(reverse(f"writing_{what}", args=[writing.uuid]), fields | more, HTTP_ACCEPT="application/json")


def test_a_plain_prompt_enters_the_pool_as_the_labelers(labeler_client, labeler, labeler2):
    writing = begun(labeler_client)
    assert begun(labeler_client) == writing  # an empty one is gone on with
    assert post(labeler_client, "draft", writing, {"text": "Na"}, editor="e", version=1).json()["version"] == 1
    assert "Na" in labeler_client.get(reverse("writing", args=[writing.uuid])).text
    fields = {"text": "Name a river.\r\nAny."}
    assert post(labeler_client, "submit", writing, fields).json() == {"url": reverse("writings")}
    prompt = Prompt.objects.get()
    assert (prompt.text, prompt.kind, prompt.source) == ("Name a river.\nAny.", "plain", "labeler")
    assert prompt.author.user == labeler and prompt.split == prompt.author.split
    assert post(labeler_client, "submit", writing, fields).status_code == 200 and Prompt.objects.count() == 1
    assert intake.check_waiting()  # as the worker does
    batch = builders.batch()
    builders.task(batch, prompt)
    assert tasks.claim_next(by=labeler) is None and tasks.claim_next(by=labeler2) is not None
    assert "Name a river." in labeler_client.get(reverse("writings")).text


def test_pairs_become_prompts_with_the_others_before_them(labeler_client):
    writing = begun(labeler_client, "few_shot")
    assert post(labeler_client, "submit", writing, SHOTS).status_code == 200
    asked = {prompt.text: prompt for prompt in Prompt.objects.all()}
    assert set(asked) == {"I won!", "I lost.", "So what."}
    assert [turn["content"] for turn in asked["I lost."].messages] == [
        "Say the feeling.\n\nI won!", "glad", "So what.", "calm", "I lost."
    ]  # fmt: skip
    assert Response.objects.get(prompt=asked["I lost."]).text == "sad"
    assert {response.origin for response in Response.objects.all()} == {"person"}
    assert len({prompt.split for prompt in asked.values()}) == 1


@pytest.mark.parametrize(
    ("kind", "fields", "places"),
    [
        ("plain", {"text": "  "}, ["text"]),
        ("user_based", {"text": "Hello", "use_case": "nothing"}, ["use_case"]),
        ("few_shot", SHOTS | {"response-3": ""}, ["response-3"]),
        ("few_shot", {"instruction": "x", "query-1": "a", "response-1": "b"}, ["query-2"]),
        ("few_shot", SHOTS | {"query-2": "I won!"}, ["query-1"]),
    ],
)
def test_what_is_wrong_is_named_and_kept(labeler_client, kind, fields, places):
    writing = begun(labeler_client, kind)
    refused = post(labeler_client, "submit", writing, fields)
    assert refused.status_code == 422 and [p["field"] for p in refused.json()["problems"]] == places
    page = labeler_client.post(reverse("writing_submit", args=[writing.uuid]), fields)
    assert page.status_code == 422 and all(text in page.text for name, text in fields.items() if name != "use_case")
    assert not Prompt.objects.exists()


def test_a_duplicate_is_answered_clearly(labeler_client, labeler2_client):
    assert post(labeler_client, "submit", begun(labeler_client), {"text": "Twice"}).status_code == 200
    assert "already" in post(labeler_client, "submit", begun(labeler_client), {"text": "Twice"}).json()["html"]
    assert (
        "in the pool already"
        in post(labeler2_client, "submit", begun(labeler2_client), {"text": "Twice"}).json()["html"]
    )
    assert Prompt.objects.count() == 1


def test_two_pages_lose_nothing_of_each_other(labeler_client):
    writing = begun(labeler_client)
    post(labeler_client, "draft", writing, {"text": "from one"}, editor="one", version=1, base=0)
    behind = post(labeler_client, "draft", writing, {"text": "from two"}, editor="two", version=1, base=0)
    assert behind.status_code == 409 and behind.json()["code"] == "saved_elsewhere"
    assert {w.content["text"] for w in Writing.objects.all()} == {"from one", "from two"}
    taken = {"takes": "one:1", "editor": "three", "version": 2, "base": 0}
    assert post(labeler_client, "draft", writing, {"text": "from one, on"}, **taken).status_code == 200
    found = post(labeler_client, "aside", writing, {"text": "from a computer"})
    assert "kept here" in found.json()["html"] and Writing.objects.count() == 3
    assert post(labeler_client, "aside", writing, {"text": "from a computer"}).status_code == 200
    assert Writing.objects.count() == 3


def test_only_ones_own_and_only_labelers(labeler_client, labeler2_client, reviewer_client):
    writing = begun(labeler_client)
    for name in ("writing", "writing_draft", "writing_aside", "writing_submit"):
        address = reverse(name, args=[writing.uuid])
        ask = labeler2_client.get if name == "writing" else labeler2_client.post
        assert ask(address, {"text": "x"}).status_code == 404, name
    assert reviewer_client.get(reverse("writings")).status_code == 403
    other = {"text": "x", "owner": "somebody else"}
    assert post(labeler_client, "draft", writing, other).json()["code"] == "other_person"


def test_who_is_paused_begins_no_prompt_and_finishes_what_was_begun(labeler_client, labeler, reviewer):
    old = begun(labeler_client)
    post(labeler_client, "draft", old, {"text": "Name a"}, editor="e", version=1)
    for reason in ("Pastes.", "Hurries."):
        pauses.set_paused(labeler=labeler, is_paused=True, reason=reason, by=reviewer)
        late = Writing.objects.create(labeler=labeler, kind="plain")  # of a page that was open just then
    page = labeler_client.get(reverse("writings")).text
    assert "You are paused" in page and "Write a plain prompt" not in page and "Pastes" not in page
    refused = labeler_client.post(reverse("writing_new"), {"kind": "plain"})
    assert refused.status_code == 409 and "You are paused" in refused.text
    post(labeler_client, "submit", late, {"text": "New work."})
    assert not Prompt.objects.exists() and "New work." in labeler_client.get(reverse("writings")).text
    assert post(labeler_client, "submit", old, {"text": "Name a river.", "next": "1"}).status_code == 200
    assert Prompt.objects.get().text == "Name a river."
    pauses.set_paused(labeler=labeler, is_paused=False, reason="Talked.", by=reviewer)
    kept = Writing.objects.get(content__text="New work.")
    assert post(labeler_client, "submit", kept, {"text": "New work."}).status_code == 200
    assert Prompt.objects.count() == 2


def test_use_cases_are_a_list_that_researchers_keep(researcher_client, labeler_client):
    address = reverse("use_cases")
    assert UseCase.objects.filter(name="open_qa", is_open=True).exists()
    assert researcher_client.post(address, {"name": "recipes", "description": "cook"}).status_code == 302
    refused = researcher_client.post(address, {"name": "recipes", "description": "again"})
    assert refused.status_code == 422 and "again" in refused.text
    long = researcher_client.post(address, {"name": "long", "description": "x" * 501})
    assert long.status_code == 422 and "501 characters; the limit is 500" in long.text and "x" * 501 in long.text
    writing = begun(labeler_client, "user_based")
    assert "recipes: cook" in labeler_client.get(reverse("writing", args=[writing.uuid])).text
    researcher_client.post(address, {"use_case": UseCase.objects.get(name="recipes").pk, "open": "0"})
    fields = {"text": "Soup?", "use_case": "recipes"}
    assert post(labeler_client, "submit", writing, fields).status_code == 422
    researcher_client.post(address, {"use_case": UseCase.objects.get(name="recipes").pk, "open": "1"})
    assert post(labeler_client, "submit", writing, fields).status_code == 200
    assert Prompt.objects.get().use_case == "recipes"
