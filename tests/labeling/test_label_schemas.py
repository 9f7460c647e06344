"""The rating form as data: new versions, what they refuse, and labels under the version they were made with."""

import uuid

import pytest
from django.db import Error, transaction
from django.urls import reverse

from labeling.actions import label_schemas, submissions, tasks
from labeling.errors import Invalid
from labeling.models import Batch, LabelSchema, Submission
from tests import builders

pytestmark = pytest.mark.django_db


def content(**parts) -> dict:
    flags = [
        {"name": "rude", "label": "Is rude", "help": "To anyone", "required": True},
        {"name": "long", "label": "Too long"},
    ]
    return {
        "quality": {"min": 1, "max": 5, "anchors": {"1": "useless", "5": "perfect"}},
        "response_flags": flags,
        "prompt_flags": [{"name": "odd", "label": "Odd"}],
    } | parts


@pytest.fixture
def first():
    return builders.label_schema()


def test_a_new_version_and_the_same_again(first, researcher):
    made = label_schemas.create_schema(content=content(), by=researcher)
    assert (made.version, made.created_by) == (2, researcher)
    assert made.scale["worst"] == "useless" and list(made.quality_range) == [1, 2, 3, 4, 5]
    again = content(prompt_flags=[{"name": "odd", "label": " Odd ", "help": "", "required": False}])
    assert label_schemas.create_schema(content=again, by=researcher) == made
    assert label_schemas.create_schema(content=first.content, by=researcher).version == 3


@pytest.mark.parametrize(
    ("parts", "place", "field"),
    [
        ({"quality": {"min": 1, "max": 10}}, "Rating scale", "id_scale-min"),
        ({"quality": {"min": 5, "max": 5}}, "Rating scale", "id_scale-min"),
        ({"quality": {"min": True, "max": 5}}, "Rating scale", "id_scale-min"),
        ({"quality": {"min": 1, "max": 5, "anchors": {"7": "beyond"}}}, "Rating scale", "id_scale-anchor_7"),
        ({"response_flags": [{"name": "No Good", "label": "x"}]}, "Response flag 1", "id_response_flags-0-name"),
        ({"response_flags": [{"name": "x", "label": " "}]}, "Response flag 1", "id_response_flags-0-label"),
        ({"prompt_flags": [{"name": "x", "label": "x"}] * 2}, "Prompt flag 2", "id_prompt_flags-1-name"),
        ({"prompt_flags": [{"name": "x", "label": "x" * 201}]}, "Prompt flag 1", "id_prompt_flags-0-label"),
        ({"prompt_flags": "none"}, "Prompt flag", ""),
    ],
)
def test_what_is_wrong_is_named(first, parts, place, field):
    with pytest.raises(Invalid) as refused:
        label_schemas.create_schema(content=content(**parts), by=None)
    assert [(p["place"], p["field"]) for p in refused.value.errors] == [(place, field)]
    assert LabelSchema.objects.count() == 1


def test_the_page_makes_a_version_and_keeps_what_was_refused(first, researcher_client, labeler_client):
    address = reverse("label_schema_new")
    page = researcher_client.get(address)
    sent = {field.html_name: field.value() or "" for field in page.context["scale"]}
    for rows in (page.context["response_flags"], page.context["prompt_flags"]):
        sent |= {field.html_name: field.value() or "" for field in rows.management_form}
        for row in rows:
            sent |= {field.html_name: field.value() or "" for field in row if field.name != "required"}
    sent |= {
        "response_flags-0-label": "Does not follow",
        "response_flags-0-required": "on",
        "response_flags-1-place": "1",
    }
    refused = researcher_client.post(address, sent | {"scale-max": "70", "response_flags-2-name": "Not A Name"})
    assert refused.status_code == 422 and "Not A Name" in refused.text and 'value="70"' in refused.text
    assert 'href="#id_scale-min"' in refused.text and 'href="#id_response_flags-2-name"' in refused.text
    made = researcher_client.post(address, sent)
    assert made.url == reverse("label_schema", args=[2])
    flags = LabelSchema.latest().response_flags
    assert {flags[0]["name"], flags[1]["name"]} == {"fails_instruction", "inappropriate"} and len(flags) == 11
    assert {"name": "fails_instruction", "label": "Does not follow", "required": True} in flags
    shown = researcher_client.get(made.url).text
    assert "Does not follow" in shown and "needed" in shown
    assert labeler_client.get(made.url).status_code == 403
    assert researcher_client.get(address + "?from=99").status_code == 404
    assert "Version 2" in researcher_client.get(reverse("label_schemas")).text


def test_a_batch_pins_its_version_and_needed_flags_must_be_answered(first, labeler, labeler_client, researcher_client):
    label_schemas.create_schema(content=content(), by=None)
    builders.prompt("Name a fruit.")
    order = {"name": "old form", "kind": "demonstration", "overlap": 1, "priority": 0, "seed": 0, "schema_version": "1"}
    assert researcher_client.post(reverse("batch_new"), order).status_code == 302
    assert Batch.objects.get().schema.version == 1
    batch = Batch.objects.create(name="new form", kind="ranking", responses_per_task=2, schema=LabelSchema.latest())
    task = builders.task(batch, builders.prompt("Rank."), {"a": "one", "b": "two"})
    tasks.claim_next(kind="ranking", by=labeler)
    page = labeler_client.get(reverse("task", args=[task.uuid])).text
    assert "useless" in page and "To anyone" in page and 'name="quality-A"' in page and 'value="6"' not in page
    ids = [str(each.response.uuid) for each in task.task_responses.all()]
    answer = builders.ranking_answer([ids])
    with pytest.raises(Invalid, match="Is rude"):
        submissions.submit(task=task, submit_key=uuid.uuid4(), answer=answer, by=labeler)
    answer["ratings"] = {u: {"quality": 5, "flags": {"rude": False}} for u in ids}
    submissions.submit(task=task, submit_key=uuid.uuid4(), answer=answer, by=labeler)
    ratings = Submission.objects.get().current.ratings
    assert all(
        rating["flags"] == {"rude": False, "long": None} for rating in ratings.values()
    )  # "no" is not "unanswered"
    label_schemas.create_schema(content=content(response_flags=[{"name": "rude", "label": "Renamed"}]), by=None)
    own = labeler_client.get(reverse("submission", args=[Submission.objects.get().uuid])).text
    assert "Is rude: no" in own and "Renamed" not in own and "Too long" not in own


def test_a_version_is_never_changed(first):
    with pytest.raises(Error), transaction.atomic():
        LabelSchema.objects.filter(pk=first.pk).update(content={})
