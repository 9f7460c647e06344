"""The console's labelers and agreement: numbers that lead to their rows, rules that pause, people who decide."""

import csv
from datetime import timedelta

import pytest
from django.core import mail
from django.db import IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from labeling.actions import gold, numbers, pauses, tasks
from labeling.errors import Forbidden, Invalid
from labeling.models import GoldAnswer, LabelerPause, LabelerRule, Slot, Submission, SubmissionNumbers, Task
from tests.labeling import rows

pytestmark = pytest.mark.django_db


@pytest.fixture
def ranked(labeler, labeler2, heldout_labeler):
    """Six tasks of three responses: two labelers agree, the held-out one says the opposite; all rated and flagged."""
    batch = rows.make_ranking_batch(prompts=6, k=3, overlap=3)
    for task in batch.tasks.all():
        ids = rows.response_ids(task)
        for who, order in ((labeler, ids), (labeler2, ids), (heldout_labeler, ids[::-1])):
            ratings = {pk: {"quality": 3 + i, "flags": {"hallucination": i == 0}} for i, pk in enumerate(order)}
            rows.submit(task, who, tiers=[[pk] for pk in order], ratings=ratings, prompt_flags={"sensitive": False})
    numbers.measure()
    return batch


def text(response) -> str:
    return " ".join(response.content.decode().split())


def test_the_table_of_labelers_and_its_csv(ranked, reviewer_client, labeler, heldout_labeler):
    page = text(reviewer_client.get(reverse("labelers")))
    assert page.index(str(heldout_labeler)) < page.index(str(labeler)), "lowest reliability first"
    assert "50.0 %" in page
    lines = list(csv.DictReader(reviewer_client.get(reverse("labelers_csv")).content.decode().splitlines()))
    of = {line["labeler"]: line for line in lines}
    assert float(of[str(labeler)]["agreement"]) == 0.5 and float(of[str(heldout_labeler)]["agreement"]) == 0
    assert text(reviewer_client.get(reverse("labelers"), {"group": "held_out"})).count("<tr>") == 2


def test_a_name_is_no_formula(ranked, reviewer_client, labeler):
    labeler.name = "=1+1"
    labeler.save()
    assert "'=1+1" in reviewer_client.get(reverse("labelers_csv")).content.decode()


@pytest.mark.parametrize(("shown", "count"), [("all", 6), ("agreement", 6), ("gold", 0), ("fast", 0), ("skips", 1)])
def test_every_number_leads_to_its_rows(ranked, reviewer_client, labeler, shown, count):
    labeler.skips.create(task=rows.make_ranking_batch("more").tasks.get(), reason="unclear", comment="Unclear to me.")
    page = reviewer_client.get(reverse("labeler", args=[labeler.pk]), {"rows": shown})
    assert page.status_code == 200 and page.context["page"].paginator.count == count
    assert ("Unclear to me." in text(page)) == (shown == "skips")


def test_who_is_no_labeler_has_no_such_page(labeler, applicant, reviewer, reviewer_client, make_user):
    once = make_user("once@example.org", "labeler")
    pauses.set_paused(labeler=once, is_paused=True, reason="Left.", by=reviewer)
    once.withdraw("labeler")
    for person, status in ((labeler, 200), (once, 200), (applicant, 404), (reviewer, 404)):
        assert reviewer_client.get(reverse("labeler", args=[person.pk])).status_code == status
    said = {"paused": "yes", "reason": "Not one."}
    assert reviewer_client.post(reverse("labeler_pause", args=[applicant.pk]), said).status_code == 404
    assert not LabelerPause.objects.filter(labeler=applicant).exists()


def test_reports_of_batches_and_of_all_with_rows_behind_each_figure(ranked, reviewer_client):
    listed = text(reviewer_client.get(reverse("agreement_reports")))
    assert "All batches" in listed and ranked.name in listed
    page = reviewer_client.get(reverse("agreement_report"), {"batch": ranked.pk})
    assert "100.0 %" in text(page) and "Flag: Hallucination" in text(page)
    for line in page.context["lines"]:
        for figure, href in line.cells:
            if figure:
                behind = reviewer_client.get(href)
                assert behind.status_code == 200 and behind.context["page"].paginator.count, href
    pairs = reviewer_client.get(reverse("agreement_rows"), {"batch": ranked.pk, "between": "training"})
    assert pairs.context["page"].paginator.count == 6
    lines = list(
        csv.DictReader(
            reviewer_client.get(reverse("agreement_csv"), {"batch": ranked.pk}).content.decode().splitlines()
        )
    )
    found = {(line["measure"], line["between"]): line for line in lines}
    assert float(found["share", "training"]["value"]) == 1 and float(found["share", "between"]["value"]) == 0
    assert found["prompt_flag:sensitive", "all"]["value"] == "", "all said the same: α is not defined"


def test_labeler_by_labeler(ranked, reviewer_client, labeler, labeler2, heldout_labeler):
    """Two agree on all of six tasks; the third with neither. On a seventh, the two differ on one comparison of three: 6.667 of 7."""
    labeler.name = "=1+1"
    labeler.save()
    task = rows.make_ranking_batch("one more", k=3, overlap=2).tasks.get()
    a, b, c = rows.response_ids(task)
    rows.submit(task, labeler, tiers=[[a], [b], [c]])
    rows.submit(task, labeler2, tiers=[[b], [a], [c]])
    numbers.measure()
    page = reviewer_client.get(reverse("agreement_labelers"))
    said = {(str(person), str(cell.other)): (cell.mean, cell.tasks, cell.shade)
            for person, cells in page.context["matrix"] for _self, cell in cells if cell}  # fmt: skip
    assert said["=1+1", str(labeler2)] == (pytest.approx((6 + 2 / 3) / 7), 7, "shade-10")
    assert said[str(labeler2), str(heldout_labeler)] == (0, 6, "shade-0") and len(said) == 6
    assert "95 %" in text(page) and reverse("agreement") in page.text and reverse("agreement_reports") in page.text
    (cell,) = [row for row in page.context["matrix"][0][1] if row[1] and row[1].other == labeler2]
    behind = reviewer_client.get(cell[1].href)
    assert behind.context["page"].paginator.count == 7 and f"Between =1+1 and {labeler2} alone" in text(behind)
    own = reviewer_client.get(reverse("agreement_labelers"), {"labeler": labeler.pk, "batch": ranked.pk})
    assert [(row.other, row.tasks, row.mean) for row in own.context["page"]] == [
        (heldout_labeler, 6, 0),
        (labeler2, 6, 1),
    ]
    between = reviewer_client.get(reverse("agreement_labelers"), {"between": "training"})
    assert [str(person) for person in between.context["people"]] == ["=1+1", str(labeler2)]
    lines = list(csv.reader(reviewer_client.get(reverse("agreement_labelers_csv")).text.splitlines()))
    assert lines[1] == [labeler.email, labeler2.email, "7", "0.9524", "20", "21"] and len(lines) == 4
    for path in ("?labeler=99999999", "?labeler=x&between=x&batch=9"):
        assert reviewer_client.get(reverse("agreement_labelers") + path).status_code == (404 if "99" in path else 200)
    assert reverse("agreement_labelers") in reviewer_client.get(reverse("agreement")).text


def test_as_many_queries_for_more_rows(ranked, reviewer_client, make_user, researcher_client):
    paths = [
        reverse("labelers"), reverse("labeler", args=[Submission.objects.first().labeler_id]), reverse("gold"),
        reverse("agreement_reports"), reverse("agreement_report"), reverse("agreement_rows"),
        reverse("agreement_rows") + "?measure=quality", reverse("labeler_rules"), reverse("agreement_labelers"),
        reverse("agreement_labelers") + f"?labeler={Submission.objects.first().labeler_id}",
    ]  # fmt: skip

    def count() -> list[int]:
        found = []
        for path in paths:
            with CaptureQueriesContext(connection) as queries:
                assert reviewer_client.get(path).status_code == 200
            found.append(len(queries))
        return found

    for task in ranked.tasks.all()[:2]:
        gold.make(task=task, tiers=[[pk] for pk in rows.response_ids(task)], explanation="x", by=None)
    numbers.measure()
    count()
    before = count()
    more = rows.make_ranking_batch("more", prompts=5, k=3, overlap=3)
    for number in range(3):
        who = make_user(f"more{number}@example.org", "labeler")
        for task in more.tasks.all():
            rows.submit(task, who)
    for task in Task.objects.filter(batch=more)[:3]:
        gold.make(task=task, tiers=[[pk] for pk in rows.response_ids(task)], explanation="x", by=None)
    numbers.measure()
    assert count() == before


# Pauses --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def rule(researcher) -> LabelerRule:
    return pauses.make_rule(metric="agreement", threshold=0.3, minimum=5, window_days=14, by=researcher)


def test_a_rule_pauses_and_tells_the_reviewers(ranked, rule, labeler, heldout_labeler, reviewer, reviewer_client):
    pauses.apply_rules()
    heldout_labeler.refresh_from_db()
    labeler.refresh_from_db()
    assert heldout_labeler.is_paused and not labeler.is_paused
    made = LabelerPause.objects.get()
    assert (made.rule, made.value, made.count, made.by) == (rule, 0, 6, None)
    assert [message.to for message in mail.outbox] == [[reviewer.email]]
    assert str(heldout_labeler) in mail.outbox[0].body and "on 6 submissions." in mail.outbox[0].body
    assert str(heldout_labeler) in text(reviewer_client.get(reverse("reviews"))), "where a reviewer's day starts"
    assert pauses.apply_rules() == [], "once"


@pytest.mark.parametrize(
    ("metric", "threshold", "minimum", "who"),
    [
        ("agreement", 0.3, 7, 0),  # too few
        ("agreement", 0, 5, 0),
        ("agreement", 0.6, 5, 3),
        ("consensus_agreement", 0.3, 5, 1),
        ("is_too_fast", 0.5, 5, 1),
        ("skip_rate", 0.2, 5, 1),
        ("gold_share", 0.5, 1, 1),
        ("gold_passed", 0.5, 1, 1),
    ],
)
def test_what_rules_measure(ranked, researcher, labeler, heldout_labeler, metric, threshold, minimum, who):
    SubmissionNumbers.objects.filter(labeler=heldout_labeler).update(is_too_fast=True)
    one = SubmissionNumbers.objects.filter(labeler=heldout_labeler).first()
    SubmissionNumbers.objects.filter(pk=one.pk).update(gold_share=0.2, gold_passed=False)
    more = rows.make_ranking_batch("more", prompts=2)
    for task in more.tasks.all():
        heldout_labeler.skips.create(task=task, reason="unclear")
    made = pauses.make_rule(metric=metric, threshold=threshold, minimum=minimum, window_days=14, by=researcher)
    assert len(pauses.beyond(made)) == who
    if metric == "skip_rate":
        assert pauses.beyond(made)[0].value == 2 / 8
    SubmissionNumbers.objects.update(submitted_at=timezone.now() - timedelta(days=15))
    assert pauses.beyond(made) == [], "outside of the window"


def test_who_skips_all_that_they_are_given_is_paused_by_the_rule_of_skips(labeler, researcher):
    made = pauses.make_rule(metric="skip_rate", threshold=0.5, minimum=3, window_days=14, by=researcher)
    skipped = rows.make_ranking_batch("skipped", prompts=3).tasks.all()
    for task in skipped[:2]:
        labeler.skips.create(task=task, reason="unclear")
    assert pauses.beyond(made) == [], "too few to act on"
    labeler.skips.create(task=skipped[2], reason="unclear")
    (found,) = pauses.beyond(made)
    assert (found.labeler, found.value, found.count) == (labeler, 1.0, 3)


def test_who_is_paused_finishes_what_is_open_and_gets_nothing_new(ranked, rule, heldout_labeler, client_for, reviewer):
    rows.make_ranking_batch("open", prompts=2, k=2)
    held = tasks.claim_next(by=heldout_labeler)
    pauses.apply_rules()
    client = client_for(heldout_labeler)
    page = text(client.get(reverse("tasks")))
    assert "You are paused" in page and "agreement" not in page.lower()
    assert client.get(reverse("task", args=[held.task.uuid])).status_code == 200
    assert tasks.claim_next(by=heldout_labeler).pk == held.pk, "the seat they hold"
    Slot.objects.filter(pk=held.pk).update(status="submitted", submitted_at=timezone.now(), lease_expires_at=None)
    assert tasks.claim_next(by=heldout_labeler) is None
    page = text(client.post(reverse("task_next"), follow=True))
    assert "New work is paused for you" in page and "All done" not in page and "nothing left" not in page
    pauses.set_paused(labeler=heldout_labeler, is_paused=False, reason="A misunderstanding.", by=reviewer)
    assert tasks.claim_next(by=heldout_labeler) is not None
    assert pauses.apply_rules() == [], "what a person has looked at is not held against them again"


def test_a_person_decides_with_a_reason(labeler, reviewer, reviewer_client, labeler_client):
    address = reverse("labeler_pause", args=[labeler.pk])
    assert reviewer_client.post(address, {"paused": "yes", "reason": " "}).status_code == 422
    assert reviewer_client.post(address, {"paused": "yes", "reason": "Asks to rest."}).status_code == 302
    assert reviewer_client.post(address, {"paused": "yes", "reason": "Asks to rest."}).status_code == 302
    labeler.refresh_from_db()
    assert labeler.is_paused and LabelerPause.objects.count() == 1, "twice is once"
    assert "Asks to rest." in text(reviewer_client.get(reverse("labeler", args=[labeler.pk])))
    assert "Asks to rest." not in text(labeler_client.get(reverse("tasks")))
    with pytest.raises(Invalid):
        pauses.set_paused(labeler=labeler, is_paused=False, reason="", by=reviewer)
    with pytest.raises(Forbidden):
        pauses.set_paused(labeler=reviewer, is_paused=True, reason="x", by=reviewer)
    with pytest.raises(Forbidden):
        pauses.set_paused(labeler=labeler, is_paused=False, reason="x", by=labeler)
    for unclear in ({"paused": "1"}, {}):
        refused = reviewer_client.post(address, unclear | {"reason": "Look at it."})
        assert refused.status_code == 422 and "Look at it." in text(refused) and LabelerPause.objects.count() == 1
    reviewer_client.post(address, {"paused": "no", "reason": "Rested."})
    assert [each.is_pause for each in LabelerPause.objects.all()] == [True, False]


def test_a_second_reason_to_pause_is_kept_beside_the_first(labeler, reviewer_client, researcher_client):
    """Two people with the page open, and a rule that was first."""
    address, page = (reverse(name, args=[labeler.pk]) for name in ("labeler_pause", "labeler"))
    for client, reason in ((reviewer_client, "Pastes."), (researcher_client, "Pastes."), (reviewer_client, "Hurries.")):
        for _twice in range(2):
            assert client.post(address, {"paused": "yes", "reason": reason}).status_code == 302
    shown = text(reviewer_client.get(page))
    assert (shown.count("Pastes."), shown.count("Hurries.")) == (2, 1)
    for client in (reviewer_client, researcher_client):
        client.post(address, {"paused": "no", "reason": "Talked it over."})
    labeler.refresh_from_db()
    assert not labeler.is_paused
    assert [each.is_pause for each in LabelerPause.objects.all()] == [True] * 3 + [False] * 2


def test_rules_over_http(researcher_client, reviewer_client):
    wanted = {"metric": "skip_rate", "threshold": "40", "minimum": "10", "window_days": "7"}
    assert researcher_client.post(reverse("labeler_rule_new"), wanted | {"threshold": "140"}).status_code == 422
    assert researcher_client.post(reverse("labeler_rule_new"), wanted).status_code == 302
    made = LabelerRule.objects.get()
    assert (made.threshold, made.is_below, str(made)) == (0.4, False, "tasks skipped > 40%")
    assert "tasks skipped" in text(reviewer_client.get(reverse("labeler_rules")))
    for _twice in range(2):
        assert researcher_client.post(reverse("labeler_rule_end", args=[made.pk])).status_code == 302
    made.refresh_from_db()
    assert made.ended_at


@pytest.mark.parametrize("change", [{"reason": "other"}, None])
def test_what_was_decided_is_kept(labeler, reviewer, change):
    made = pauses.set_paused(labeler=labeler, is_paused=True, reason="x", by=reviewer)
    with pytest.raises(IntegrityError), transaction.atomic():
        LabelerPause.objects.filter(pk=made.pk).update(**change) if change else made.delete()


# Gold in the console ---------------------------------------------------------------------------------------------------


def test_gold_is_made_of_what_labelers_settled_on(ranked, researcher_client, reviewer_client, make_user, labeler):
    task = ranked.tasks.first()
    address = reverse("gold_new", args=[task.uuid])
    page = researcher_client.get(address)
    assert "consensus of 3 rankings" in text(page)
    letters = {card.uuids[0]: card.letter for card in page.context["form"].cards}
    places = {f"place-{letters[pk]}": str(n) for n, pk in enumerate(rows.response_ids(task), 1)}
    assert page.context["form"].initial == places
    sent = places | {"explanation": "The first says most.", "tolerance": "40"}
    refused = researcher_client.post(address, sent | {"explanation": ""})
    assert refused.status_code == 422 and "selected" in text(refused)
    assert researcher_client.post(address, sent).status_code == 302
    assert researcher_client.post(address, sent).status_code == 409, "sent twice"
    made = GoldAnswer.objects.get()
    assert made.tiers == [[pk] for pk in rows.response_ids(task)] and made.tolerance == 0.4

    def listed() -> GoldAnswer:
        numbers.measure()
        return reviewer_client.get(reverse("gold"), {"batch": ranked.pk}).context["page"].object_list[0]

    assert (listed().done, listed().share) == (None, None), "what was ranked before is what it was made of, and no test"
    behind = reviewer_client.get(reverse("labeler", args=[labeler.pk]), {"rows": "gold"})
    assert behind.context["page"].paginator.count == 0
    for name, order in (("right", 1), ("wrong", -1)):
        tiers = [[pk] for pk in rows.response_ids(task)][::order]
        rows.submit(task, make_user(f"{name}@example.org", "labeler"), tiers=tiers)
    assert (listed().done, listed().passed, listed().share) == (2, 1, 0.5)
    earlier = Submission.objects.get(task=task, labeler=labeler)
    Submission.objects.filter(pk=earlier.pk).update(is_gold=True)  # a test under an answer that was withdrawn since
    numbers.forget(task_id=task.pk)
    assert listed().done == 3
    assert researcher_client.post(reverse("gold_end", args=[made.pk])).status_code == 422
    made.refresh_from_db()
    assert made.released_at is None
    for how in ("release", "withdraw"):
        assert researcher_client.post(reverse("gold_end", args=[made.pk]), {"how": how}).status_code == 302
    made.refresh_from_db()
    assert made.released_at and made.withdrawn_at


def test_the_rate_is_the_batchs(ranked, researcher_client):
    address = reverse("batch_edit", args=[ranked.pk])
    assert researcher_client.post(address, {"priority": "0", "gold_percent": "60"}).status_code == 422
    assert researcher_client.post(address, {"priority": "0", "gold_percent": "10"}).status_code == 302
    ranked.refresh_from_db()
    assert ranked.gold_percent == 10
    assert "mixed in at 10 %" in text(researcher_client.get(reverse("batch", args=[ranked.pk])))
