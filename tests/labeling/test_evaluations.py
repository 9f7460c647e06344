"""Evaluations by people: what an order lays out, who is given it and told what, figures against numbers worked by hand, no export."""

import json
import uuid

import pytest
from django.core.management import call_command
from django.db import IntegrityError, transaction
from django.test import Client
from django.urls import reverse

from labeling import jobs
from labeling.actions import batches, evaluations, exports, instructions, reviews, submissions, tasks, tokens
from labeling.errors import Invalid, NotPrepared
from labeling.models import Batch, Evaluation, Instructions, Statistic, Submission, Task
from tests.labeling.rows import make_prompt, make_ranking_batch, make_responses, submit
from training.contract import read_export

pytestmark = pytest.mark.django_db
MODELS = ["new", "old", "base"]


def make_prompts(count: int, models=MODELS, split="test", **fields):
    """Prompts of the test split with two responses of each model."""
    made = [make_prompt(f"Question {split} {i}?", split=split, **fields) for i in range(count)]
    for prompt in made:
        for model in models:
            make_responses(prompt, f"{model} to {prompt.text}", f"{model} otherwise to {prompt.text}", model=model)
    return made


def order(name="eval", model_names=MODELS, **options) -> Batch:
    return batches.create_batch(
        name=name, kind="ranking", purpose="evaluation", model_names=model_names, **{"by": None} | options
    )


def named(task: Task) -> dict[str, str]:
    """Model → its response's UUID."""
    rows = task.task_responses.values_list("response__model_version__name", "response__uuid")
    return {model: str(name) for model, name in rows}


def judge(task, labeler, *tiers: str, ratings=None, **fields) -> Submission:
    """A ranking by the models' names, best first ("new old" tie); ratings: model → (quality, flags)."""
    of = named(task)
    given = {of[model]: {"quality": q, "flags": flags} for model, (q, flags) in (ratings or {}).items()}
    return submit(task, labeler, tiers=[[of[m] for m in tier.split()] for tier in tiers], ratings=given, **fields)


def pair(result: dict, first: str, second: str) -> dict:
    return next(each for each in result["pairs"] if (each["first"], each["second"]) == (first, second))


# ---- the order ------------------------------------------------------------------------------------------------------


def test_every_task_has_one_response_of_each_model_on_test_prompts_by_held_out_labelers():
    make_prompts(3)
    make_prompts(2, split="train")
    lacking = make_prompt("Lacking?", split="test")
    make_responses(lacking, "a", model="new"), make_responses(lacking, "b", model="old")
    alike = make_prompt("Alike?", split="test")
    [make_responses(alike, "same", model=model) for model in MODELS]
    batch = order(overlap=2)
    assert (batch.group, batch.responses_per_task, batch.purpose) == ("held_out", 3, "evaluation")
    assert {task.prompt.split for task in batch.tasks.select_related("prompt")} == {"test"}
    for task in batch.tasks.all():
        models = task.task_responses.values_list("response__model_version__name", flat=True)
        assert sorted(models) == sorted(MODELS)
    counts = {"tasks": 3, "seats": 6, "prompts": 5, "without_model": 1, "identical_texts": 1}
    assert batch.counts | counts == batch.counts
    assert order(overlap=2) == batch, "the same order is the same batch"
    assert order("for all", group="any").group == ""


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"model_names": ["new"]}, "model_names"),
        ({"model_names": []}, "model_names"),
        ({"k": 2}, "k"),
        ({"split": "train"}, "split"),
        ({"must_include": ["new"]}, "must_include"),
        ({"kind": "demonstration"}, "purpose"),
        ({"purpose": "fun"}, "purpose"),
        ({"group": "friends"}, "group"),
    ],
)
def test_an_order_that_is_no_evaluation_is_refused(options, place):
    make_prompts(1)
    asked = {"name": "e", "kind": "ranking", "purpose": "evaluation", "model_names": MODELS, "by": None} | options
    with pytest.raises(Invalid, match=place):
        batches.create_batch(**asked)
    assert not Batch.objects.exists()


def test_a_prompt_of_another_split_is_refused_by_name_and_by_the_database():
    [train] = make_prompts(1, split="train")
    make_prompts(1)
    with pytest.raises(Invalid, match="of the train split"):
        order(prompt_ids=[train.uuid])
    batch = order()
    with pytest.raises(IntegrityError, match="test split"), transaction.atomic():
        Task.objects.create(batch=batch, prompt=train, kind="ranking")
    with pytest.raises(IntegrityError), transaction.atomic():
        Batch.objects.filter(pk=batch.pk).update(kind="demonstration", responses_per_task=None)


def test_ordered_in_the_console_and_by_the_command(client_for, researcher, capsys):
    make_prompts(2)
    form = {"name": "e", "kind": "ranking", "purpose": "evaluation", "k": 4, "overlap": 1, "seed": 0, "priority": 0}
    client = client_for(researcher)
    assert client.post(reverse("batch_new"), form).status_code == 422
    made = client.post(reverse("batch_new"), form | {"model_names": ["new", "old"]})
    assert made.status_code == 302, made.text
    assert (Batch.objects.get().group, Batch.objects.get().responses_per_task) == ("held_out", 2)
    models = [f"--model={name}" for name in MODELS]
    call_command("create_batch", "f", "--kind=ranking", "--purpose=evaluation", "--group=any", *models)
    assert "f: 2 tasks, 2 seats" in capsys.readouterr().out


# ---- labelers -------------------------------------------------------------------------------------------------------


def test_the_labeler_reads_the_instructions_for_evaluations_and_then_ranks_as_ever(
    heldout_labeler, heldout_labeler_client, labeler_client, researcher
):
    make_prompts(2)
    ranking = instructions.publish(kind="ranking", text="Helpful first.", by=researcher)
    batch = order()
    shipped = Instructions.objects.get(kind="evaluation")
    assert "Truthful and harmless come first" in shipped.text and "high" not in shipped.note
    assert "final evaluation" not in labeler_client.get("/tasks/").text, "not for their group"

    instructions.acknowledge(instructions=ranking, by=heldout_labeler)
    page = heldout_labeler_client.get("/tasks/").text
    assert "Before your first final evaluation" in page
    with pytest.raises(NotPrepared) as due:
        tasks.claim_next(by=heldout_labeler)
    assert (due.value.kind, due.value.step) == ("evaluation", "instructions")
    reading = heldout_labeler_client.post("/tasks/next")
    assert reading.url == "/instructions/evaluation/"
    assert "only slightly" in heldout_labeler_client.get(reading.url).text
    heldout_labeler_client.post(f"{reading.url}acknowledge", {"version": 1, "read": "on"})
    page = heldout_labeler_client.post("/tasks/next", follow=True)
    assert "Truthful and harmless come first" in page.text and "Helpful first." not in page.text
    assert batch.slots.filter(status="leased").count() == 1
    order("second")
    assert Instructions.objects.filter(kind="evaluation").count() == 1


def test_a_ranking_elsewhere_asks_for_the_instructions_of_rankings_alone(labeler, researcher):
    make_prompts(1)
    order(group="any", priority=-5)
    make_ranking_batch("usual")
    instructions.publish(kind="ranking", text="Helpful first.", by=researcher)
    with pytest.raises(NotPrepared) as due:
        tasks.claim_next(by=labeler)
    assert due.value.kind == "ranking"
    instructions.acknowledge(instructions=Instructions.objects.get(kind="ranking"), by=labeler)
    assert tasks.claim_next(by=labeler).batch.name == "usual"
    answer = {"tiers": [[str(r) for r in labeler.drafts.get().shown_order]], "ratings": {}, "all_bad": True}
    task = labeler.drafts.get().task
    quality = {name: {"quality": 1, "flags": {}} for name in labeler.drafts.get().shown_order}
    submissions.submit(task=task, submit_key=uuid.uuid4(), answer=answer | {"ratings": quality}, by=labeler)
    with pytest.raises(NotPrepared) as due:
        tasks.claim_next(by=labeler)
    assert due.value.kind == "evaluation"


# ---- figures --------------------------------------------------------------------------------------------------------


@pytest.fixture
def judged(make_user, heldout_labeler, labeler):
    """Four prompts, two of them stories. Held out: new beats old on three and loses one; one more labeler ties them on the first."""
    cases = ["story", "story", "fact", "fact"]
    for i, case in enumerate(cases):
        prompt = make_prompt(f"{case} {i}?", split="test", use_case=case)
        [make_responses(prompt, f"{model} says {i}", model=model) for model in MODELS]
    batch = order(overlap=2, group="any")
    of = {task.prompt.text: task for task in batch.tasks.select_related("prompt")}
    first, second, third, fourth = (of[f"{case} {i}?"] for i, case in enumerate(cases))
    bad = {
        "new": (6, {"hallucination": False}),
        "old": (4, {"hallucination": True}),
        "base": (1, {"hallucination": None}),
    }
    good = {"new": (7, {"hallucination": False}), "old": (5, {"hallucination": False}), "base": (2, {})}
    made = [
        judge(first, heldout_labeler, "new", "old", "base", ratings=bad),
        judge(second, heldout_labeler, "new", "old base", ratings=good),
        judge(third, heldout_labeler, "old", "new", "base", ratings=bad),
        judge(fourth, heldout_labeler, "new", "base", "old", ratings=good),
        judge(first, labeler, "new old", "base", ratings=good),
    ]
    return batch, made


def test_figures_are_those_worked_by_hand(judged):
    """new against old: 1 and ½ on the first prompt, then 1, 0, 1: 3.5 of 5 = 0.7.
    e = (1.5 − 1.4, 0.3, −0.7, 0.3); V = 4/3 · 0.68/25 = 0.0362667; effective 0.21/V = 5.790; t(3)² = 10.128:
    (0.7 + 0.87461)/2.74922 ∓ 3.18245·√(0.0362667 + 0.0755254)/2.74922 = 0.57275 ∓ 0.38704."""
    batch, _made = judged
    result = evaluations.result(batch)
    assert (result["prompts"], result["labelers"], result["rankings"], result["open"]) == (4, 2, 5, 3)
    assert (result["origin"], result["is_complete"], result["prompts_ordered"]) == ("person", False, 4)
    found = pair(result, "new", "old")
    assert (found["win_rate"], found["comparisons"], found["prompts"], found["ties"]) == (0.7, 5, 4, 1)
    assert (found["low"], found["high"]) == pytest.approx((0.18571, 0.95979), abs=1e-4)
    mirror = pair(result, "old", "new")
    assert (mirror["win_rate"], mirror["low"], mirror["high"]) == pytest.approx(
        (0.3, 1 - found["high"], 1 - found["low"])
    )
    assert {name: each["win_rate"] for name, each in found["by_use_case"].items()} == {
        "fact": 0.5,
        "story": pytest.approx(2.5 / 3, abs=1e-6),
    }
    assert {name: each["win_rate"] for name, each in found["by_group"].items()} == {"held_out": 0.75, "training": 0.5}
    assert found["by_group"]["training"]["low"] is None, "one prompt tells of no other"

    new, old, base = result["policies"]
    assert [each["model"] for each in (new, old, base)] == MODELS, "in the order of the order"
    assert (new["rating"], new["ratings"], base["rating"]) == (6.6, 5, 1.6)
    assert old["flags"]["hallucination"] | {"rate": 0.4, "answers": 5} == old["flags"]["hallucination"]
    assert base["flags"]["hallucination"]["rate"] is None, "unanswered is not no"
    assert (
        new["by_use_case"]["fact"]["rating"] == 6.5
        and old["by_group"]["held_out"]["flags"]["hallucination"]["rate"] == 0.5
    )


def test_what_does_not_stand_does_not_count(judged, reviewer, make_user):
    batch, made = judged
    reviews.review(submission=made[2], verdict="rejected", comment="No.", revision=1, by=reviewer)
    assert pair(evaluations.result(batch), "new", "old")["win_rate"] == 3.5 / 4, "computed anew: a decision came"
    reviews.review(submission=made[0], verdict="returned", comment="Look again.", revision=1, by=reviewer)
    result = evaluations.result(batch)
    assert (pair(result, "new", "old")["comparisons"], result["open"]) == (3, 5), "one seat more for each"
    judge(made[1].task, make_user("late@example.org", "labeler"), "base", "old", "new", is_surplus=True)
    assert pair(evaluations.result(batch), "new", "old")["comparisons"] == 3


def test_simulated_answers_stand_apart_unless_asked_for(judged, make_user):
    batch, made = judged
    robot = make_user("sim@example.org", "labeler", is_simulated=True, group="held_out")
    judge(made[1].task, robot, "old", "new", "base")
    Submission.objects.filter(labeler=robot).update(origin="simulated")
    of = {origin: evaluations.result(batch, origin) for origin in evaluations.ORIGINS}
    assert {origin: result["rankings"] for origin, result in of.items()} == {"person": 5, "simulated": 1, "both": 6}
    assert {origin: result["origin"] for origin, result in of.items()} == {origin: origin for origin in of}
    assert pair(of["simulated"], "new", "old")["win_rate"] == 0 and pair(of["person"], "new", "old")["win_rate"] == 0.7


def test_nothing_judged_yet_says_so():
    make_prompts(2)
    result = evaluations.result(order())
    assert (result["prompts"], result["open"], result["is_complete"]) == (0, 2, False)
    assert [(each["model"], each["rating"], each["ratings"]) for each in result["policies"]] == [
        (m, None, 0) for m in MODELS
    ]
    assert {each["win_rate"] for each in result["pairs"]} == {None} and len(result["pairs"]) == 6


def test_a_complete_evaluation_is_on_record_once_with_each_model(judged):
    batch, _made = judged
    jobs.refresh_statistics()
    assert not Evaluation.objects.exists(), "three seats are open"
    batches.set_status(batch=batch, status="closed", by=None)
    for _ in range(2):
        Statistic.objects.update(mark="")
        jobs.refresh_statistics()
    records = {each.model_version.name: each for each in Evaluation.objects.select_related("model_version")}
    assert sorted(records) == sorted(MODELS) and Evaluation.objects.count() == 3
    new = records["new"]
    assert (new.name, new.measured_by, new.config["batch"]) == ("eval", "people", batch.pk)
    assert new.metrics["against"]["old"]["win_rate"] == 0.7 and new.metrics["rating"] == 6.6
    assert evaluations.result(Batch.objects.get())["is_complete"] is True


# ---- exports --------------------------------------------------------------------------------------------------------


def test_its_rankings_enter_no_export_unless_the_batch_is_named(judged, labeler, settings, tmp_path):
    settings.EXPORT_DIR = tmp_path
    usual = make_ranking_batch("usual")
    submit(usual.tasks.get(), labeler)

    def ranked(**query) -> set[str]:
        return {row.batch for row in read_export(exports.build(query=query, by=None).folder).rankings()}

    assert ranked() == {"usual"}
    assert ranked(groups=["held_out"], splits=["test"]) == set()
    assert ranked(batches=["eval"]) == {"eval"}
    assert ranked(batches=["eval", "usual"], pairs=True) == {"eval", "usual"}


# ---- the API --------------------------------------------------------------------------------------------------------


def test_by_api(researcher, reviewer, labeler, heldout_labeler):
    make_prompts(2)

    def caller(user, scope):
        _token, secret = tokens.create(user=user, name=f"{user.pk} {scope}", scopes=[scope])
        return Client(headers={"Authorization": f"Bearer {secret}"})

    asked = {"name": "e", "kind": "ranking", "purpose": "evaluation", "model_names": ["new", "old"], "overlap": 1}
    made = caller(researcher, "import").post("/api/v1/batches/", json.dumps(asked), content_type="application/json")
    assert (made.status_code, made.json()["purpose"]) == (201, "evaluation")
    batch = Batch.objects.get()
    assert batch.group == "held_out"
    path = f"/api/v1/batches/{batch.pk}/evaluation/"
    for task in batch.tasks.all():
        judge(task, heldout_labeler, "new", "old")
    for reader in (researcher, reviewer):
        answer = caller(reader, "read").get(path)
        assert answer.status_code == 200
        assert answer.json() | {"batch": batch.pk, "is_complete": True, "origin": "person"} == answer.json()
        assert pair(answer.json(), "new", "old")["win_rate"] == 1
    assert Client().get(path).status_code == 401
    reading = Client(
        headers={"Authorization": f"Bearer {tokens.create(user=researcher, name='r', scopes=['read'])[1]}"}
    )
    assert reading.get(f"{path}?origin=simulated").json()["rankings"] == 0
    assert reading.get(f"{path}?origin=ai").status_code == 422
    assert reading.post(path).status_code in (403, 405)
    assert caller(labeler, "label").get(path).status_code == 403
    assert reading.get(f"/api/v1/batches/{make_ranking_batch('usual').pk}/evaluation/").status_code == 404
    assert reading.get("/api/v1/batches/999999/evaluation/").status_code == 404
