"""The invariants of the database, each provoked: what care forgets, a constraint refuses."""

import uuid

import pytest
from django.db import IntegrityError, connection, transaction
from django.utils import timezone

from labeling.models import (
    ApiToken,
    Author,
    Batch,
    Draft,
    Evaluation,
    Export,
    Import,
    Invitation,
    LabelSchema,
    ModelVersion,
    Promotion,
    Prompt,
    Response,
    Review,
    Revision,
    Skip,
    Slot,
    Submission,
    Task,
    TaskResponse,
    User,
    UserRole,
)
from tests import builders

pytestmark = pytest.mark.django_db

TEXTS = {"gpt": "Apple", "sft": "Pear", "ppo": "Plum"}


def refused(name: str, act) -> None:
    """The act breaks the constraint (or trips the trigger) whose message holds this name, and nothing else."""
    with pytest.raises(IntegrityError) as error, transaction.atomic():
        act()
        with connection.cursor() as cursor:
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
    assert name in str(error.value), error.value


@pytest.fixture
def ranking():
    return builders.task(builders.batch("ranking", name="ranks", overlap=2), builders.prompt("Rank fruit."), TEXTS)


@pytest.fixture
def demonstration():
    return builders.task(builders.batch(), builders.prompt("Name a fruit."))


def ids(task) -> list[str]:
    return [str(each) for each in task.task_responses.values_list("response__uuid", flat=True)]


def submitted(task, labeler, seat=1, **fields) -> Submission:
    """A submission in a seat, without a revision."""
    now = timezone.now()
    slot = task.slots.get(seat=seat)
    slot.lease(labeler, now)
    slot.status, slot.lease_expires_at, slot.submitted_at = "submitted", None, now
    slot.save()
    base = {"slot": slot, "kind": task.kind, "labeler_group": "training", "schema": task.batch.schema}
    return Submission.objects.create(task=task, labeler=labeler, **base | fields)


def revised(submission, number=1, **fields) -> Revision:
    fields = fields or {"text": "An apple."}
    return Revision.objects.create(submission=submission, number=number, submit_key=uuid.uuid4(), **fields)


# People --------------------------------------------------------------------------------------------------------


def test_an_email_is_one_person_whatever_its_case(labeler):
    refused("user_email_unique", lambda: User.objects.create(email=labeler.email.upper()))


def test_groups_and_roles_are_known_words(labeler):
    refused("user_group_valid", lambda: User.objects.filter(pk=labeler.pk).update(group="other"))
    refused("user_role_valid", lambda: UserRole.objects.create(user=labeler, role="king"))
    refused("user_role_once", lambda: UserRole.objects.create(user=labeler, role="labeler"))
    refused("invitation_role_valid", lambda: Invitation.objects.create(email="a@b.org", role="king", secret_hash="1"))
    refused("invitation_group_valid", lambda: Invitation.objects.create(email="a@b.org", group="x", secret_hash="2"))


# Prompts and responses -----------------------------------------------------------------------------------------


def test_all_prompts_of_an_author_share_the_split():
    author = Author.objects.create(key="a", split="train")
    refused("prompt_split_is_authors", lambda: _prompt_in("valid", author))
    builders.prompt("right", author=author)
    refused("prompt_split_is_authors", lambda: Author.objects.filter(pk=author.pk).update(split="test"))
    refused("author_split_valid", lambda: Author.objects.create(key="b", split="other"))


def _prompt_in(split, author):
    prompt = Prompt.from_messages([{"role": "user", "content": "wrong split"}], author=author)
    prompt.split = split
    prompt.save()


def test_a_prompt_is_stored_once():
    first = builders.prompt("same", external_id="x")
    refused("content_sha256", lambda: builders.prompt("same"))
    refused("prompt_external_id_unique", lambda: builders.prompt("other", external_id="x"))
    for field in ("kind", "source"):
        refused(f"prompt_{field}_valid", lambda f=field: Prompt.objects.filter(pk=first.pk).update(**{f: "other"}))


def test_what_was_asked_and_answered_does_not_change(ranking):
    response = ranking.task_responses.first().response
    refused("kept as they were", lambda: Response.objects.filter(pk=response.pk).update(text="changed"))
    refused("kept as they were", lambda: Prompt.objects.filter(pk=ranking.prompt_id).update(messages=[]))
    refused("kept as they were", lambda: ranking.task_responses.all().delete())
    refused("kept as they were", lambda: TaskResponse.objects.update(task=ranking.pk + 1))
    Prompt.objects.filter(pk=ranking.prompt_id).update(use_case="chat")  # what is said about it may


def test_a_response_is_a_models_or_a_persons(ranking):
    prompt, model = ranking.prompt, ModelVersion.objects.first()
    make = Response.objects.create
    refused("response_model_or_person", lambda: make(prompt=prompt, text="x", origin="model", external_id="1"))
    refused(
        "response_model_or_person",
        lambda: make(prompt=prompt, text="x", origin="person", model_version=model, external_id="1"),
    )
    refused("response_once", lambda: make(prompt=prompt, text="x", model_version=model, external_id=model.name))
    refused(
        "response_finish_reason",
        lambda: make(prompt=prompt, text="x", model_version=model, external_id="2", finish_reason="tired"),
    )


def test_a_response_has_a_prompt_and_a_model_and_they_stay():
    prompt, model = builders.prompt("asked"), ModelVersion.objects.create(name="outside", stage="external")
    right = Response(prompt=prompt, model_version=model, text="x", external_id="1")
    astray = [{"prompt_id": prompt.pk + 1}, {"model_version_id": model.pk + 1}]
    for keys, said in zip(astray, ("there is no prompt", "there is no model"), strict=True):
        wrong = Response(**{"prompt": prompt, "model_version": model} | keys, text="x", external_id="2")
        refused(said, lambda made=wrong: Response.objects.bulk_create([right, made]))
    for row in (prompt, model):  # before anything refers to them, too
        refused("rows are kept", row.delete)
        refused("rows are kept", lambda kept=row: type(kept).objects.filter(pk=kept.pk).update(id=kept.pk + 1))


def test_a_prompts_import_is_there_and_both_stay():
    record, other = (Import.objects.create(kind="prompts", file_name="f", file_sha256="") for _ in range(2))
    nowhere = [Prompt(messages=[], content_sha256=f"d{pk}", split="test", imported_in_id=pk) for pk in (record.pk, 0)]
    refused("there is no import", lambda: Prompt.objects.bulk_create(nowhere))
    kept = Prompt.objects.create(messages=[], content_sha256="d", split="test", imported_in=record)
    refused("kept as they were", lambda: Prompt.objects.filter(pk=kept.pk).update(imported_in=other))
    refused("rows are kept", lambda: Import.objects.filter(pk=record.pk)._raw_delete("default"))
    refused("rows are kept", other.delete)


def test_one_model_serves():
    manifest = {"manifest": {}, "stage": "sft", "status": "serving"}
    ModelVersion.objects.create(name="a", manifest_sha256="a", **manifest)
    refused("model_one_serving", lambda: ModelVersion.objects.create(name="b", manifest_sha256="b", **manifest))
    refused("model_has_manifest", lambda: ModelVersion.objects.create(name="c", stage="sft"))
    refused(
        "model_serving_is_policy",
        lambda: ModelVersion.objects.create(name="d", stage="rm", manifest={}, manifest_sha256="d", status="serving"),
    )
    refused(
        "manifest_sha256", lambda: ModelVersion.objects.create(name="e", stage="sft", manifest={}, manifest_sha256="a")
    )


# Batches, tasks, seats -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("batch_k_2_to_12", {"kind": "ranking", "responses_per_task": 13}),
        ("batch_k_2_to_12", {"kind": "ranking", "responses_per_task": 1}),
        ("batch_k_2_to_12", {"kind": "ranking", "responses_per_task": None}),
        ("batch_k_2_to_12", {"kind": "demonstration", "responses_per_task": 4}),
        ("batch_k_2_to_12", {"kind": "other"}),
        ("batch_overlap", {"kind": "demonstration", "overlap": 0}),
        ("batch_overlap", {"kind": "demonstration", "overlap": 51}),
        ("batch_group_valid", {"kind": "demonstration", "group": "other"}),
        ("batch_status_valid", {"kind": "demonstration", "status": "other"}),
    ],
)
def test_batches_are_possible(name, fields):
    schema = LabelSchema.latest()
    refused(name, lambda: Batch.objects.create(name="b", schema=schema, **fields))


def test_a_task_is_once_per_batch_and_prompt_and_response(ranking):
    refused("task_prompt_once", lambda: Task.objects.create(batch=ranking.batch, prompt=ranking.prompt, kind="ranking"))
    refused("task_kind_valid", lambda: Task.objects.filter(pk=ranking.pk).update(kind="other"))
    response = ranking.task_responses.first().response
    refused("task_response_once", lambda: TaskResponse.objects.create(task=ranking, response=response))


def test_one_slot_per_seat_and_one_seat_per_labeler(ranking, labeler):
    slot = ranking.slots.first()
    refused("slot_seat_once", lambda: Slot.objects.create(task=ranking, seat=1, batch=ranking.batch, kind="ranking"))
    lease = {"status": "leased", "labeler": labeler, "leased_at": timezone.now(), "lease_expires_at": timezone.now()}
    Slot.objects.filter(pk=slot.pk).update(**lease)
    refused("slot_labeler_once_per_task", lambda: Slot.objects.filter(task=ranking, seat=2).update(**lease))


def test_a_slots_status_says_who_holds_it(ranking, labeler):
    now = timezone.now()
    for fields in (
        {"status": "open", "labeler": labeler},
        {"status": "open", "leased_at": now},
        {"status": "leased"},
        {"status": "leased", "labeler": labeler, "leased_at": now},
        {"status": "submitted", "labeler": labeler},
        {"status": "submitted", "labeler": labeler, "submitted_at": now, "lease_expires_at": now},
        {"status": "other"},
    ):
        refused("slot_status_consistent", lambda f=fields: Slot.objects.filter(task=ranking, seat=1).update(**f))


def test_one_draft_and_one_skip_per_labeler(demonstration, labeler):
    Draft.objects.create(task=demonstration, labeler=labeler)
    refused("draft_once", lambda: Draft.objects.create(task=demonstration, labeler=labeler))
    Skip.objects.create(task=demonstration, labeler=labeler, reason="unclear")
    refused("skip_once", lambda: Skip.objects.create(task=demonstration, labeler=labeler, reason="broken"))


# Submissions and revisions -------------------------------------------------------------------------------------


def test_one_submission_per_task_and_labeler(demonstration, labeler):
    submitted(demonstration, labeler)
    schema = demonstration.batch.schema
    common = {"kind": "demonstration", "labeler_group": "training", "schema": schema, "is_surplus": True}
    refused("submission_once", lambda: Submission.objects.create(task=demonstration, labeler=labeler, **common))


def test_a_submission_has_a_seat_or_is_surplus(demonstration, labeler):
    submission = submitted(demonstration, labeler)
    mine = Submission.objects.filter(pk=submission.pk)
    refused("submission_slot_or_surplus", lambda: mine.update(slot=None))
    refused("submission_slot_or_surplus", lambda: mine.update(is_surplus=True))
    for field in ("kind", "labeler_group", "origin", "status"):
        name = "group" if field == "labeler_group" else field
        refused(f"submission_{name}_valid", lambda f=field: mine.update(**{f: "other"}))


def test_a_submissions_seat_is_its_labelers_own(ranking, demonstration, labeler, labeler2):
    submission = submitted(ranking, labeler)
    theirs = submitted(ranking, labeler2, seat=2)
    seat = theirs.slot
    theirs.slot, theirs.is_surplus = None, True
    theirs.save()
    mine = Submission.objects.filter(pk=submission.pk)
    refused("submission_slot_is_labelers", lambda: mine.update(slot=seat))
    refused("submission_slot_is_labelers", lambda: mine.update(slot=demonstration.slots.get()))
    refused("submission_slot_is_labelers", lambda: mine.update(labeler=labeler2, task=demonstration))
    freed = {"labeler": None, "status": "open", "leased_at": None, "submitted_at": None}
    refused("submission_slot_is_labelers", lambda: Slot.objects.filter(pk=submission.slot_id).update(**freed))


def test_revisions_are_numbered_and_keyed_once(demonstration, labeler):
    submission = submitted(demonstration, labeler)
    first = revised(submission)
    refused("revision_number_once", lambda: revised(submission))
    refused(
        "revision_submit_key_once",
        lambda: Revision.objects.create(submission=submission, number=2, submit_key=first.submit_key, text="x"),
    )


def test_revisions_and_reviews_are_append_only(demonstration, labeler, reviewer):
    revision = revised(submitted(demonstration, labeler))
    review = Review.objects.create(
        submission=revision.submission, revision=revision, verdict="accepted", reviewer=reviewer
    )
    refused("kept as they were", lambda: Revision.objects.filter(pk=revision.pk).update(text="changed"))
    refused("kept as they were", lambda: review.delete())
    refused("kept as they were", lambda: Review.objects.filter(pk=review.pk).update(comment="changed"))
    refused("kept as they were", lambda: Revision.objects.filter(pk=revision.pk)._raw_delete("default"))
    refused("kept as they were", lambda: LabelSchema.objects.update(content={}))


def test_erasure_is_the_one_exception(demonstration, labeler):
    revision = revised(submitted(demonstration, labeler))
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL heed.erasure = 'on'")
        Revision.objects.filter(pk=revision.pk).update(text="")
        cursor.execute("SET LOCAL heed.erasure = 'off'")
    refused("kept as they were", lambda: Revision.objects.filter(pk=revision.pk).update(text="again"))


def test_a_revision_is_what_its_task_asks_for(demonstration, ranking, labeler):
    text_of = submitted(demonstration, labeler)
    tiers_of = submitted(ranking, labeler)
    refused("needs a text", lambda: revised(text_of, tiers=[[]]))
    refused("needs tiers", lambda: revised(tiers_of, text="x"))
    refused("revision_text_or_tiers", lambda: revised(text_of, text="x", tiers=[["x"]]))


@pytest.mark.parametrize(
    ("message", "tiers"),
    [
        ("exactly once", lambda a, b, c: [[a], [b]]),  # one left out
        ("exactly once", lambda a, b, c: [[a], [b], [c], [str(uuid.uuid4())]]),  # a foreign one
        ("exactly once", lambda a, b, c: [[a], [b], [str(uuid.uuid4())]]),
        ("exactly once", lambda a, b, c: [[a, a], [b]]),  # one twice
        ("exactly once", lambda a, b, c: []),
        ("list of non-empty lists", lambda a, b, c: [[a], [], [b, c]]),
        ("list of non-empty lists", lambda a, b, c: [a, b, c]),
        ("list of non-empty lists", lambda a, b, c: {"a": [a, b, c]}),
    ],
)
def test_a_ranking_holds_each_response_of_its_task_once(ranking, labeler, message, tiers):
    submission = submitted(ranking, labeler)
    refused(message, lambda: revised(submission, tiers=tiers(*ids(ranking))))


def test_ratings_are_of_the_tasks_own_responses(ranking, labeler):
    submission, own = submitted(ranking, labeler), ids(ranking)
    ratings = {str(uuid.uuid4()): {"quality": 3}}
    refused("not of this task", lambda: revised(submission, tiers=[own], ratings=ratings))
    revised(submission, tiers=[own[:2], own[2:]], ratings={own[0]: {"quality": 3}})


def test_a_review_is_of_a_revision_of_its_submission(demonstration, ranking, labeler, reviewer):
    revision = revised(submitted(demonstration, labeler))
    other = submitted(ranking, labeler)
    make = Review.objects.create
    refused(
        "review_revision_is_submissions",
        lambda: make(submission=other, revision=revision, verdict="accepted", reviewer=reviewer),
    )
    common = {"submission": revision.submission, "revision": revision, "reviewer": reviewer}
    refused("review_returned_needs_comment", lambda: make(verdict="returned", comment="", **common))
    refused("review_verdict", lambda: make(verdict="other", **common))


# Exports -------------------------------------------------------------------------------------------------------


def ready_export(**fields) -> Export:
    base = {"number": 1, "status": "ready", "data_sha256": "a", "manifest": {"n": 1}, "finished_at": timezone.now()}
    return Export.objects.create(**base | fields)


def test_an_export_has_a_number_when_it_is_ready():
    refused("export_number_when_ready", lambda: Export.objects.create(status="ready"))
    refused("export_number_when_ready", lambda: Export.objects.create(status="building", number=3))


def test_an_export_never_changes():
    export = ready_export()
    mine = Export.objects.filter(pk=export.pk)
    refused("kept as they were", lambda: mine.update(manifest={"n": 2}))
    refused("kept as they were", lambda: mine.update(data_sha256="b"))
    refused("kept as they were", lambda: export.delete())
    mine.update(status="withdrawn")


def test_an_evaluation_never_changes():
    model = ModelVersion.objects.create(name="m", stage="external")
    evaluation = Evaluation.objects.create(model_version=model, name="gold", metrics={"win_rate": 0.7}, digest="a")
    refused("kept as they were", lambda: evaluation.delete())
    refused("kept as they were", lambda: Evaluation.objects.filter(pk=evaluation.pk).update(metrics={}))
    refused(
        "evaluation_once",
        lambda: Evaluation.objects.create(model_version=model, name="gold", metrics={}, digest="a"),
    )
    refused(
        "evaluation_measured_by_known",
        lambda: Evaluation.objects.create(model_version=model, name="g", metrics={}, digest="b", measured_by="stars"),
    )


def test_a_promotion_has_a_reason():
    model = ModelVersion.objects.create(name="m", stage="external")
    refused("promotion_needs_reason", lambda: Promotion.objects.create(model_version=model, reason=""))


def test_a_token_has_known_scopes_and_a_name_of_its_own(researcher):
    common = {"user": researcher, "expires_at": timezone.now()}
    ApiToken.objects.create(name="a", secret_hash="1", scopes=["read"], **common)
    refused("token_name_once", lambda: ApiToken.objects.create(name="a", secret_hash="2", scopes=["read"], **common))
    for scopes in ([], ["everything"]):
        refused(
            "token_scopes_valid",
            lambda s=scopes: ApiToken.objects.create(name="b", secret_hash="3", scopes=s, **common),
        )
