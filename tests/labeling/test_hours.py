"""Hours: time counted once, entered for what was done, summed by person and day."""

import csv
import io
import uuid
from datetime import timedelta

import pytest
from django.db import IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from labeling.actions import drafts, exercises, hours, submissions, tasks
from labeling.errors import Forbidden
from labeling.models import Draft, PayRule, Submission, User, WorkEntry, Writing
from tests.labeling.rows import make_demonstration_batch

pytestmark = pytest.mark.django_db


@pytest.fixture
def task(labeler):
    """Given to the labeler ten minutes ago."""
    make_demonstration_batch(prompts=4)
    return given(labeler)


def given(labeler, ago: int = 600):
    task = tasks.claim_next(by=labeler).task
    Draft.objects.filter(task=task).update(created_at=timezone.now() - timedelta(seconds=ago))
    return task


def save(task, by, page: str, seconds: float, text: str = "") -> float:
    """What the draft's time is after a page claimed so much."""
    draft = Draft.objects.get(task=task)
    seen = drafts.Seen(base=draft.version, version=draft.version + 1, revision=0, editor=page)
    drafts.save_draft(task=task, content={"text": text or page}, seen=seen, active_seconds=seconds, by=by)
    return Draft.objects.get(task=task).active_seconds


def submit(task, by, seconds: float = 0, text: str = "Done.") -> Submission:
    draft = Draft.objects.get(task=task)
    handed_in = Submission.objects.filter(task=task, labeler=by).first()
    revision = handed_in.revision_count if handed_in else 0
    seen = drafts.Seen(base=draft.version, version=draft.version, revision=revision, editor="a")
    return submissions.submit(
        task=task, submit_key=uuid.uuid4(), answer={"text": text}, seen=seen, active_seconds=seconds, by=by
    )


def pass_time(labeler, seconds: int) -> None:
    User.objects.filter(pk=labeler.pk).update(worked_until=timezone.now() - timedelta(seconds=seconds))


def entries() -> list[tuple]:
    return list(WorkEntry.objects.order_by("id").values_list("activity", "seconds", "is_surplus"))


def enter(labeler, activity="ranking", seconds=60, days_ago=0, **fields) -> WorkEntry:
    moment = timezone.localtime().replace(hour=12) - timedelta(days=days_ago)
    return WorkEntry.objects.create(labeler=labeler, activity=activity, seconds=seconds, ended_at=moment, **fields)


# ---- counting -------------------------------------------------------------------------------------------------------


def test_a_page_says_all_its_time_and_only_what_is_new_counts(task, labeler):
    assert save(task, labeler, "a", 40) == 40
    assert save(task, labeler, "a", 40) == 40  # the answer was lost: sent again
    assert save(task, labeler, "a", 30) == 40  # overtaken on its way
    pass_time(labeler, 30)
    assert save(task, labeler, "a", 55.5) == 55.5


def test_a_page_opened_later_counts_on(task, labeler):
    save(task, labeler, "a", 40)
    pass_time(labeler, 100)
    assert save(task, labeler, "b", 20) == 60


def test_two_tabs_at_once_get_no_more_than_the_time_that_passed(task, labeler):
    save(task, labeler, "a", 100)
    assert save(task, labeler, "b", 100) < 102
    pass_time(labeler, 50)
    save(task, labeler, "a", 150)
    assert save(task, labeler, "b", 150) < 153


def test_nor_do_two_tasks_at_once(task, labeler):
    pass_time(labeler, 600)
    first = save(task, labeler, "a", 300)
    other = Draft.objects.create(task=task.batch.tasks.exclude(pk=task.pk)[0], labeler=labeler)
    Draft.objects.filter(pk=other.pk).update(created_at=timezone.now() - timedelta(seconds=600))
    assert first == 300
    assert save(other.task, labeler, "b", 300) < 2


def test_time_is_not_counted_for_the_future_by_claiming_much(task, labeler):
    assert save(task, labeler, "a", 9999) < 605
    pass_time(labeler, 100)
    assert save(task, labeler, "a", 9999) < 605  # the claim is spent: what follows must be claimed anew


def test_a_page_without_a_name_claims_nothing(task, labeler):
    assert save(task, labeler, "", 40) == 0


def test_a_sign_of_work_and_looking_away_count_too(labeler_client, task, labeler):
    fields = {"editor": "a", "active_seconds": "12.5"}
    assert labeler_client.post(reverse("task_renew", args=[task.uuid]), fields).json() == {"seat": "held"}
    assert Draft.objects.get().active_seconds == 12.5
    wrong = labeler_client.post(reverse("task_renew", args=[task.uuid]), {"active_seconds": "1e9"})
    assert wrong.status_code == 422


# ---- entering -------------------------------------------------------------------------------------------------------


def test_what_is_handed_in_is_entered_with_its_time_once(task, labeler):
    save(task, labeler, "a", 40.4)
    pass_time(labeler, 20)
    made = submit(task, labeler, seconds=50.4)
    assert entries() == [("demonstration", 50, False)]
    assert (made.active_seconds, WorkEntry.objects.get().revision) == (50, made.current)
    submissions.reopen(submission=made, by=labeler)
    Draft.objects.update(created_at=timezone.now() - timedelta(seconds=100))
    pass_time(labeler, 100)
    draft = Draft.objects.get()
    seen = drafts.Seen(base=draft.version, version=1, revision=1, editor="c")
    submissions.submit(
        task=task, submit_key=uuid.uuid4(), answer={"text": "Better."}, seen=seen, active_seconds=30, by=labeler
    )
    assert entries() == [("demonstration", 50, False), ("correction", 30, False)]
    made.refresh_from_db()
    assert made.active_seconds == 80


def test_a_repeated_submit_is_entered_once(task, labeler_client, labeler):
    page = labeler_client.get(reverse("task", args=[task.uuid])).context
    fields = {"text": "Bees.", "submit_key": str(page["submit_key"]), "editor": "a", "active_seconds": "33.3"}
    for _ in range(2):
        assert labeler_client.post(reverse("task_submit", args=[task.uuid]), fields).status_code == 302
    assert entries() == [("demonstration", 33, False)]


def test_work_typed_after_the_submit_pays_only_for_itself(task, labeler):
    """A draft that outlives its submit begins a correction: the time before was entered."""
    save(task, labeler, "a", 40)
    draft = Draft.objects.get()
    Draft.objects.update(version=9)
    seen = drafts.Seen(base=draft.version, version=draft.version, revision=0, editor="a")
    submissions.submit(task=task, submit_key=uuid.uuid4(), answer={"text": "Done."}, seen=seen, by=labeler)
    assert (entries(), Draft.objects.get().active_seconds) == ([("demonstration", 40, False)], 0)


def test_surplus_is_entered_as_such(task, labeler, labeler2):
    tasks.release(task=task, by=labeler)
    other = tasks.claim_next(by=labeler2)
    assert other.task == task
    draft = Draft.objects.get(labeler=labeler)
    seen = drafts.Seen(base=draft.version, version=draft.version, revision=0, editor="a")
    submissions.submit(
        task=task, submit_key=uuid.uuid4(), answer={"text": "Late."}, seen=seen, active_seconds=25, by=labeler
    )
    assert entries() == [("demonstration", 25, True)]


def test_a_skip_is_entered_apart_and_taken_back_with_it(task, labeler_client, labeler):
    fields = {"reason": "unclear", "editor": "a", "active_seconds": "20"}
    for _ in range(2):
        labeler_client.post(reverse("task_skip", args=[task.uuid]), fields)
    assert entries() == [("skip", 20, False)]
    submit(task, labeler)  # after all
    assert entries() == [("demonstration", 20, False)]


def test_entries_stay_as_they_were_made(labeler):
    entry = enter(labeler)
    for change in (lambda: WorkEntry.objects.update(seconds=9), lambda: entry.delete()):
        with pytest.raises(IntegrityError, match="kept as they were written"), transaction.atomic():
            change()


# ---- summing --------------------------------------------------------------------------------------------------------


def test_sums_by_hand(labeler, labeler2, researcher):
    enter(labeler, "ranking", 100)
    enter(labeler, "ranking", 200, is_surplus=True)
    enter(labeler, "demonstration", 300, days_ago=1)
    enter(labeler, "correction", 50, is_surplus=True)  # of the surplus ranking: one thing handed in, not two
    enter(labeler, "skip", 7)
    enter(labeler, "screening", 1000)
    enter(labeler2, "practice", 11)
    unpaid, one = PayRule(), PayRule(pays_skips=True, pays_practice=True)
    first, second = WorkEntry.objects.all().summed("labeler", rule=unpaid)
    assert (first["labeler"], first["paid_seconds"], first["skip_seconds"], first["unpaid_seconds"]) == (
        labeler.pk, 650, 7, 1007)  # fmt: skip
    counts = {name: first[name] for name in ("rankings", "demonstrations", "corrections", "surplus", "skips")}
    assert counts == {"rankings": 2, "demonstrations": 1, "corrections": 1, "surplus": 1, "skips": 1}
    assert (second["paid_seconds"], second["practice"]) == (0, 1)
    assert [row["paid_seconds"] for row in WorkEntry.objects.all().summed("labeler", rule=one)] == [657, 11]
    today = timezone.localdate()
    days = WorkEntry.objects.filter(labeler=labeler).summed("day", rule=unpaid)
    assert [(row["day"], row["paid_seconds"]) for row in days] == [(today - timedelta(days=1), 300), (today, 350)]
    assert WorkEntry.objects.between(today, today).total(unpaid)["paid_seconds"] == 350
    assert WorkEntry.objects.between(None, today - timedelta(days=1)).total(unpaid)["paid_seconds"] == 300


def test_a_day_is_the_installations_day(labeler, settings):
    settings.TIME_ZONE = "Pacific/Auckland"
    with timezone.override("Pacific/Auckland"):
        moment = timezone.make_aware(timezone.datetime(2026, 3, 2, 0, 30))
        WorkEntry.objects.create(labeler=labeler, activity="ranking", seconds=5, ended_at=moment)
        (row,) = WorkEntry.objects.between(moment.date(), moment.date()).summed("day", rule=PayRule())
        assert row["day"].isoformat() == "2026-03-02"
        assert not WorkEntry.objects.between(None, moment.date() - timedelta(days=1)).exists()


def test_the_rule_is_set_by_a_researcher_and_kept(researcher, reviewer):
    assert PayRule.current().paid == ["demonstration", "ranking", "correction", "prompt"]
    rule = {"pays_skips": True, "pays_practice": False, "pays_screening": True}
    with pytest.raises(Forbidden):
        hours.set_rule(by=reviewer, **rule)
    for _ in range(2):
        hours.set_rule(by=researcher, **rule)
    assert PayRule.current().paid[4:] == ["skip", "screening"]
    assert PayRule.objects.count() == 1
    with pytest.raises(IntegrityError), transaction.atomic():
        PayRule.objects.update(pays_skips=False)


# ---- the pages ------------------------------------------------------------------------------------------------------


def read_csv(response) -> list[dict]:
    assert response["Content-Type"].startswith("text/csv")
    return list(csv.DictReader(io.StringIO(response.text)))


def test_a_labeler_sees_their_own(labeler_client, labeler, labeler2):
    enter(labeler, "ranking", 3700)
    enter(labeler, "skip", 7)
    enter(labeler2, "ranking", 99999)
    page = labeler_client.get(reverse("hours"))
    assert page.context["total"]["paid_seconds"] == 3700
    assert "1:01 h" in page.text
    (row,) = read_csv(labeler_client.get(reverse("hours_csv")))
    assert (row["paid_seconds"], row["paid_hours"], row["skips"]) == ("3700", "1.0278", "1")
    assert "email" not in row
    assert "Nothing in these days" in labeler_client.get(reverse("hours") + "?since=2001-01-01&until=2001-01-31").text
    assert labeler_client.get(reverse("hours") + "?since=tomorrow").status_code == 200


def test_the_console_sees_all_by_period_and_person(reviewer_client, labeler, labeler2, make_user):
    simulated = make_user("sim@example.org", "labeler", is_simulated=True)
    User.objects.filter(pk=labeler2.pk).update(name="=HYPERLINK(1)")
    enter(labeler, "ranking", 60)
    enter(labeler2, "demonstration", 7200)
    enter(labeler2, "demonstration", 60, days_ago=40)
    enter(simulated, "ranking", 10)
    page = reviewer_client.get(reverse("hours_all"))
    assert [(row["person"], row["paid_seconds"]) for row in page.context["rows"]] == [(labeler2, 7200), (labeler, 60)]
    assert page.context["total"]["paid_seconds"] == 7260
    assert "What is paid" not in page.text  # a researcher's to set
    rows = read_csv(reviewer_client.get(reverse("hours_all_csv") + f"?labeler={labeler2.pk}&by=day&since=2001-01-01"))
    assert [row["paid_seconds"] for row in rows] == ["60", "7200"]
    assert rows[0]["name"] == "'=HYPERLINK(1)"
    assert reviewer_client.get(reverse("hours_all") + "?labeler=x&by=moon&page=9").status_code == 200


def test_the_pages_take_a_constant_number_of_queries(reviewer_client, labeler_client, labeler, labeler2, researcher):
    def count(client, url):
        with CaptureQueriesContext(connection) as queries:
            assert client.get(url).status_code == 200
        return len(queries)

    enter(labeler)
    urls = [(reviewer_client, reverse("hours_all") + "?by=day&since=2001-01-01"), (labeler_client, reverse("hours"))]
    before = [count(*each) for each in urls]
    for n in range(4):
        enter(labeler2, days_ago=n)
        enter(researcher, days_ago=n)
    assert [count(*each) for each in urls] == before


def test_a_researcher_sets_what_is_paid_from_the_page(researcher_client, labeler):
    enter(labeler, "skip", 7)
    assert researcher_client.post(reverse("pay_rule"), {"pays_skips": "on"}).status_code == 302
    page = researcher_client.get(reverse("hours_all"))
    assert page.context["total"]["paid_seconds"] == 7 and "also for those that were paid already" in page.text


@pytest.mark.parametrize("name", ["hours", "hours_csv"])
def test_closed_to_everyone_else(name, client, applicant_client, reviewer_client, labeler_client):
    url = reverse(name)
    assert client.get(url)["Location"].startswith(reverse("account_login"))
    assert applicant_client.get(url).status_code == reviewer_client.get(url).status_code == 403
    assert labeler_client.post(url).status_code == 405


# ---- work that is no task -------------------------------------------------------------------------------------------


def test_a_prompt_written_is_entered_once_with_its_time(labeler_client, labeler):
    address = labeler_client.post(reverse("writing_new"), {"kind": "plain"}).url
    Writing.objects.update(created_at=timezone.now() - timedelta(seconds=600))
    page = {"text": "Name a river.", "editor": "a", "revision": 0}
    saved = {"version": 1, "active_seconds": "40"}
    assert labeler_client.post(f"{address}draft", page | saved, HTTP_ACCEPT="application/json").status_code == 200
    pass_time(labeler, 300)
    for _twice in range(2):
        labeler_client.post(f"{address}submit", page | {"active_seconds": "100"})
    assert entries() == [("prompt", 100, False)]
    assert hours_of(labeler_client)["prompts"] == "1"
    assert WorkEntry.objects.get().writing == Writing.objects.get()
    with pytest.raises(IntegrityError, match="work_entry_of_its_activity"), transaction.atomic():
        WorkEntry.objects.create(labeler=labeler, activity="practice", seconds=1, writing=Writing.objects.get())


def test_practice_is_entered_once_with_the_time_between_signs_of_work(labeler_client, labeler):
    row = {"purpose": "practice", "part": "demonstration", "prompt": "Hi", "reference": {"text": "Hello"}}
    exercises.add(row=row | {"reference_by": "the team", "explanation": "Greet."}, by=None)
    attempt = exercises.next_practice(kind="demonstration", by=labeler)
    address = reverse("practice_item", args=[attempt.uuid])
    labeler_client.get(address)

    def worked(seconds: int) -> None:
        moment = timezone.now() - timedelta(seconds=seconds)
        type(attempt).objects.update(worked_at=moment)
        User.objects.update(worked_until=None)

    worked(25)
    labeler_client.post(reverse("practice_save", args=[attempt.uuid]), {"text": "Hel"})
    worked(3600)  # a long pause is a minute of work
    for _twice in range(2):
        labeler_client.post(address, {"text": "Hello there."})
    assert [(name, pytest.approx(seconds, abs=2)) for name, seconds, _surplus in entries()] == [("practice", 85)]
    assert hours_of(labeler_client)["practice"] == "1"
    assert WorkEntry.objects.get().attempt == attempt


def hours_of(client) -> dict:
    return next(csv.DictReader(io.StringIO(client.get(reverse("hours_csv")).text)))
