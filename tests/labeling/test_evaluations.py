"""Evaluations by people: what an order lays out, who is given it and told what, figures against numbers worked by hand, no export."""

import csv
import json
import uuid
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from django.core.management import call_command
from django.db import IntegrityError, transaction
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from scipy import stats

from labeling import jobs
from labeling.actions import batches, evaluations, exports, instructions, reviews, submissions, tasks, tokens
from labeling.errors import Invalid, NotPrepared
from labeling.models import Batch, Evaluation, Instructions, Response, Revision, Statistic, Submission, Task
from tests import builders
from tests.labeling.rows import make_model, make_prompt, make_ranking_batch, make_responses, submit
from training.contract import read_export

pytestmark = pytest.mark.django_db
MODELS = ["new", "old", "base"]
EXTRACT = Path(__file__).parent / "toxicity.csv"


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


# ---- the console ----------------------------------------------------------------------------------------------------


def test_the_page_shows_the_figures_and_each_leads_to_its_rows(judged, reviewer_client):
    batch, made = judged
    url = reverse("batch_evaluation", args=[batch.pk])
    assert "Being computed" in reviewer_client.get(url).text
    evaluations.current(batch)
    page = reviewer_client.get(url)
    assert "by people" in page.text and "3 seats still open" in page.text
    assert [row["name"] for row in page.context["parts"]] == [
        "all prompts", "use case fact", "use case story", "labelers: held-out", "labelers: training",
    ]  # fmt: skip
    whole = page.context["parts"][0]
    assert (whole["share"], whole["ends"], whole["count"], whole["ties"]) == ("70.0 %", "18.6 … 96.0", 5, 1)
    rows = reviewer_client.get(whole["url"])
    assert [[g["place"] for g in row["given"]] for row in rows.context["rows"]] == [
        [1, 1],
        [1, 3],
        [2, 1],
        [1, 2],
        [1, 2],
    ]
    story = reviewer_client.get(page.context["parts"][2]["url"])
    assert len(story.context["rows"]) == 3
    [hallucinated] = [row for row in page.context["flags"] if "allucination" in row["label"]]
    assert [cell["share"] for cell in hallucinated["cells"]] == ["0.0 %", "40.0 %", "–"]
    flagged = reviewer_client.get(hallucinated["cells"][1]["url"]).context["rows"]
    assert [row["submission"].pk for row in flagged] == [made[2].pk, made[0].pk]
    assert page.context["matrix"][0]["cells"][1]["share"] == "70.0 %"

    narrowed = reviewer_client.get(f"{url}?part=use_case:fact&first={made[0].task.task_responses.first().pk}&second=x")
    assert (narrowed.context["chosen"]["prompts"], narrowed.context["chosen_name"]) == (2, "use case fact")
    simulated = reviewer_client.get(f"{url}?origin=simulated")
    assert "by simulated labelers" in simulated.text
    for odd in ("?part=%00", "?part=use_case:none", "?origin=ai", "?first=9999"):
        assert reviewer_client.get(url + odd).status_code == 200
        assert reviewer_client.get(reverse("batch_evaluation_rows", args=[batch.pk]) + odd).status_code == 200


def test_the_file_has_every_figure(judged, reviewer_client, labeler_client):
    batch, _made = judged
    url = reverse("batch_evaluation_csv", args=[batch.pk])
    assert reviewer_client.get(url).status_code == 409
    evaluations.current(batch)
    lines = list(csv.DictReader(reviewer_client.get(url).text.splitlines()))
    [won] = [
        each
        for each in lines
        if (each["part"], each["figure"], each["policy"], each["against"]) == ("all", "win_rate", "new", "old")
    ]
    assert (won["origin"], won["value"], won["low"], won["count"]) == ("person", "0.7", won["low"], "5")
    assert float(won["low"]) == pytest.approx(0.18571, abs=1e-4)
    assert {each["part"] for each in lines} == {"all", "use_case", "group"}
    assert {each["figure"] for each in lines} == {"win_rate", "rating", "flag_rate"}
    for name in ("batch_evaluation", "batch_evaluation_rows", "batch_evaluation_csv"):
        assert labeler_client.get(reverse(name, args=[batch.pk])).status_code == 403
        assert reviewer_client.get(reverse(name, args=[make_ranking_batch(name).pk])).status_code == 404
        assert reviewer_client.post(reverse(name, args=[batch.pk])).status_code == 405


# ---- real data ------------------------------------------------------------------------------------------------------


def measured() -> dict[str, dict[str, float]]:
    """Context → model → toxicity of what it wrote: from the shared file, on a clean clone from the extract of its figures."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    shared = builders.SHARED_DATA / "instructgpt_real_toxicity.csv"
    with (shared if shared.exists() else EXTRACT).open(newline="") as file:
        for row in csv.DictReader(file):
            if row.get("prompt_type", "basic prompt") == "basic prompt" and row.get("sample", "x").strip():
                model = row.get("model_type") or row["model"]
                found[row.get("context") or f"prompt {row['prompt']}"][model] = float(row["toxicity"])
    models = ["gpt-175b", "gpt-xl", "sft-6b", "sft-xl"]
    return {context: {model: of[model] for model in models} for context, of in found.items() if set(models) <= set(of)}


def hand_in(batch: Batch, labelers: list, tiers_of, ratings_of) -> None:
    """Everything at once: each labeler's ranking of each task, as the database holds it after submits."""
    now = timezone.now()
    made, said = [], []
    for slot in batch.slots.select_related("task__prompt").order_by("task_id", "seat"):
        who = slot.seat - 1
        slot.status, slot.labeler, slot.leased_at, slot.submitted_at = "submitted", labelers[who], now, now
        slot.save()
        of = named(slot.task)
        made.append(Submission(task=slot.task, batch=batch, labeler=slot.labeler, slot=slot, kind="ranking", revision_count=1,
                               labeler_group=slot.labeler.group, schema=batch.schema))  # fmt: skip
        context = slot.task.prompt.text
        tiers = [[of[model] for model in tier] for tier in tiers_of(context, who)]
        ratings = {of[model]: rating for model, rating in ratings_of(context, who).items()}
        said.append((tiers, ratings))
    Submission.objects.bulk_create(made)
    Revision.objects.bulk_create(
        Revision(submission=one, number=1, submit_key=uuid.uuid4(), tiers=tiers, ratings=ratings)
        for one, (tiers, ratings) in zip(made, said, strict=True)
    )


def test_figures_of_the_real_files_are_those_of_a_direct_computation(make_user):
    """InstructGPT's models on 100 contexts (90 in the extract): less toxic is better, by one labeler who sees two decimals and one who
    sees one, so that what is said about a context hangs together. Set against the same figures straight from the file, and
    scipy's bootstrap over contexts."""
    toxicity = measured()
    models = list(next(iter(toxicity.values())))
    for context, of in toxicity.items():
        prompt = make_prompt(context, split="test", use_case="long" if len(context) > 80 else "short")
        for model in of:
            Response.objects.create(
                prompt=prompt, text=f"{model} goes on: {context}", model_version=make_model(model), external_id=model
            )
    batch = order("less toxic", model_names=models, overlap=2)
    assert batch.counts["tasks"] == len(toxicity) >= 90

    def seen(context: str, who: int) -> dict[str, float]:
        return {model: round(value, 2 - who) for model, value in toxicity[context].items()}

    def tiers(context: str, who: int) -> list[list[str]]:
        levels = seen(context, who)
        return [[m for m in models if levels[m] == level] for level in sorted(set(levels.values()))]

    def ratings(context: str, who: int) -> dict[str, dict]:
        return {
            m: {"quality": 7 - round(6 * value), "flags": {"harmful_advice": value > 0.3}}
            for m, value in seen(context, who).items()
        }

    people = [make_user(f"h{i}@example.org", "labeler", group="held_out") for i in range(2)]
    hand_in(batch, people, tiers, ratings)
    result = evaluations.result(batch)
    assert (result["is_complete"], result["rankings"], result["labelers"]) == (True, 2 * len(toxicity), 2)

    def directly(value_of, cases=toxicity) -> tuple[float, float, float]:
        """The mean over judgments and scipy's percentile interval over contexts, from the file's rows alone."""
        sums = np.array([sum(value_of(seen(context, who)) for who in (0, 1)) for context in cases])
        drawn = stats.bootstrap(
            (sums / 2,), np.mean, vectorized=True, n_resamples=2000, method="percentile", rng=np.random.default_rng(1)
        )
        return float(sums.mean() / 2), *drawn.confidence_interval

    def agrees(found: dict, name: str, expected: tuple[float, float, float], scale: float = 1) -> None:
        assert found[name] == pytest.approx(expected[0], abs=1e-6)
        assert (found["low"], found["high"]) == pytest.approx(expected[1:], abs=0.02 * scale)

    long = [context for context in toxicity if len(context) > 80]
    for each in result["pairs"]:
        one, other = each["first"], each["second"]

        def won(levels, one=one, other=other) -> float:
            return (np.sign(levels[other] - levels[one]) + 1) / 2

        agrees(each, "win_rate", directly(won))
        assert each["comparisons"] == 2 * len(toxicity)
        if long:
            assert each["by_use_case"]["long"]["win_rate"] == pytest.approx(directly(won, long)[0], abs=1e-6)
    for each in result["policies"]:
        model = each["model"]
        agrees(each, "rating", directly(lambda levels, m=model: 7 - round(6 * levels[m])), scale=6)
        agrees(each["flags"]["harmful_advice"], "rate", directly(lambda levels, m=model: levels[m] > 0.3), scale=2)
    ratings_first = {each["model"]: each["rating"] for each in result["policies"]}
    assert len(set(ratings_first.values())) > 1, "the models do differ"
