"""Gold tasks: mixed in at their rate, in nobody's seat, and by nothing to be told from other tasks."""

import random
import re
import uuid
from collections import Counter

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from labeling.actions import gold, numbers, reviews, submissions, tasks
from labeling.actions.export_queries import Selection
from labeling.actions.export_rows import ExportRows
from labeling.errors import Conflict, Invalid
from labeling.models import Batch, Consensus, GoldAnswer, Slot, Submission, SubmissionNumbers, Task
from tests import builders
from tests.labeling import rows


class Dice:
    """Thrown as told: "gold" or "real" for every claim, until changed."""

    shows = "real"

    def random(self) -> float:
        return 0.0 if self.shows == "gold" else 0.999


@pytest.fixture
def dice(monkeypatch) -> Dice:
    loaded = Dice()
    monkeypatch.setattr(gold, "DICE", loaded)
    return loaded


def make_gold(task: Task, *, order: str = "abc", **options) -> GoldAnswer:
    ids = dict(zip("abcdef", rows.response_ids(task), strict=False))
    return gold.make(task=task, tiers=[[ids[name]] for name in order], explanation="A is right.", by=None, **options)


@pytest.fixture
def batch(db) -> Batch:
    """Twelve ranking tasks of three responses, two labelers each; the first two are gold, at one in five."""
    made = rows.make_ranking_batch(prompts=12, k=3, overlap=2)
    Batch.objects.update(gold_percent=20)
    for task in made.tasks.order_by("pk")[:2]:
        make_gold(task)
    return Batch.objects.get()


def hand_in(slot: Slot, labeler, order: str = "abc") -> Submission:
    ids = dict(zip("abc", rows.response_ids(slot.task), strict=True))
    answer = builders.ranking_answer([[ids[name]] for name in order])
    return submissions.submit(task=slot.task, submit_key=uuid.uuid4(), answer=answer, by=labeler)


def gold_tasks(batch: Batch) -> set[int]:
    return set(batch.tasks.filter(is_gold=True).values_list("pk", flat=True))


def test_it_comes_as_often_as_the_batch_says_each_once_and_never_last(db, monkeypatch, make_user):
    monkeypatch.setattr(gold, "DICE", random.Random(4))
    batch = rows.make_ranking_batch(prompts=24, k=2, overlap=3)
    Batch.objects.update(gold_percent=30)
    for task in batch.tasks.order_by("pk")[:10]:
        make_gold(task, order="ab")
    known, places, done = gold_tasks(batch), Counter(), 0
    for number in range(3):
        labeler = make_user(f"l{number}@example.org", "labeler")
        taken = []
        while slot := tasks.claim_next(by=labeler):
            taken.append(slot.task_id)
            Slot.objects.filter(pk=slot.pk).update(
                status="submitted", submitted_at=timezone.now(), lease_expires_at=None
            )
        assert len(set(taken)) == len(taken)
        assert set(taken) >= set(batch.tasks.filter(is_gold=False).values_list("pk", flat=True))
        assert taken[-1] not in known
        places.update(place for place, task in enumerate(taken) if task in known)
        done += len(taken)
    assert 0.2 < sum(places.values()) / done < 0.4, "30 % of about 60 claims, by these dice"
    assert len(places) > 8, "in many places"


def test_no_seat_of_the_overlap_goes_to_gold(batch, dice, labeler):
    assert not Slot.objects.filter(task__in=gold_tasks(batch)).exists(), "a gold task has no open seats"
    before = Slot.objects.filter(status="open").count()
    dice.shows = "gold"
    slot = tasks.claim_next(by=labeler)
    assert slot.task_id in gold_tasks(batch) and slot.is_gold
    assert Slot.objects.filter(status="open").count() == before
    submission = hand_in(slot, labeler)
    assert submission.is_gold and not submission.is_surplus
    progress = Batch.objects.progress()[batch.pk]
    assert (progress.seats, progress.submitted, progress.waiting) == (20, 0, 0)


def test_gold_is_measured_and_counts_for_nothing_else(batch, dice, labeler, labeler2):
    dice.shows = "gold"
    right, wrong = (
        hand_in(tasks.claim_next(by=who), who, order) for who, order in ((labeler, "abc"), (labeler2, "cba"))
    )
    numbers.measure()
    of = {each.submission_id: each for each in SubmissionNumbers.objects.all()}
    assert (of[right.pk].gold_share, of[right.pk].gold_passed) == (1, True)
    assert (of[wrong.pk].gold_share, of[wrong.pk].gold_passed) == (0, False)
    assert of[right.pk].others == 0 and of[right.pk].agreement is None
    assert not Consensus.objects.exists()
    assert labeler.numbers.gold == 1 and labeler2.numbers.gold == 0 and labeler2.numbers.gold_count == 1
    selection = Selection(origins=("person",))
    with ExportRows(selection) as exported:
        assert list(exported.rankings()) == []


@pytest.mark.parametrize(
    ("order", "tolerance", "passed"), [("acb", 0.34, True), ("acb", 0.33, False), ("abc", 0, True)]
)
def test_tolerance(dice, labeler, order, tolerance, passed):
    batch = rows.make_ranking_batch(prompts=2, k=3)
    Batch.objects.update(gold_percent=50)
    make_gold(batch.tasks.first(), tolerance=tolerance)
    dice.shows = "gold"
    made = hand_in(tasks.claim_next(by=labeler), labeler, order)
    numbers.measure()
    assert made.numbers.gold_passed is passed


def test_put_back_and_lost_gold_behaves_as_other_tasks_do(batch, dice, labeler):
    dice.shows = "gold"
    slot = tasks.claim_next(by=labeler)
    Slot.objects.filter(pk=slot.pk).update(lease_expires_at=timezone.now())
    assert tasks.return_expired() == 1 and not Slot.objects.filter(is_gold=True).exists()
    dice.shows = "real"
    assert tasks.claim_next(by=labeler).task_id == slot.task_id, "one that was lost comes again first"
    Slot.objects.filter(is_gold=True).update(lease_expires_at=timezone.now())
    tasks.return_expired()
    assert tasks.renew(task=slot.task, by=labeler) == "held", "going on with it takes the seat again"
    tasks.release(task=slot.task, by=labeler)
    assert not Slot.objects.filter(is_gold=True).exists()
    seen = []
    while (following := tasks.claim_next(by=labeler)).task_id != slot.task_id:
        seen.append(following.task_id)
        hand_in(following, labeler)
    assert len(seen) == 10, "one that was put back comes when nothing else is left"
    hand_in(following, labeler)
    assert tasks.claim_next(by=labeler) is None


def test_a_skip_ends_it(batch, dice, labeler):
    dice.shows = "gold"
    slot = tasks.claim_next(by=labeler)
    tasks.skip(task=slot.task, reason="unclear", by=labeler)
    assert not Slot.objects.filter(is_gold=True).exists()
    dice.shows = "gold"
    assert tasks.claim_next(by=labeler).task_id in gold_tasks(batch) - {slot.task_id}


def test_two_labelers_on_one_gold_task_have_seats_of_their_own(dice, make_user):
    batch = rows.make_ranking_batch(prompts=2, k=2)
    Batch.objects.update(gold_percent=50)
    make_gold(batch.tasks.first(), order="ab")
    dice.shows = "gold"
    seats = [tasks.claim_next(by=make_user(f"l{i}@example.org", "labeler")).seat for i in range(3)]
    assert len(set(seats)) == 3


# What a labeler could see ----------------------------------------------------------------------------------------------


def masked(html: str) -> str:
    """A page without what differs between any two tasks: UUIDs, tokens, texts of the prompt, times."""
    html = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "UUID", html)
    html = re.sub(
        r'(csrfmiddlewaretoken" value|X-CSRFToken"|nonce|seal|owner" value|data-owner|data-draft)[^>]*', "TOKEN", html
    )
    html = re.sub(r"question \d+", "question N", html)
    html = re.sub(r'letter">[A-C]<', 'letter">X<', html)
    html = re.sub(r"Answer \d to", "Answer N to", html)
    return re.sub(r"\s+", " ", html)


@pytest.fixture
def both(batch, dice, labeler, labeler_client):
    """One task of each kind, as claimed through the page: {"gold": …, "real": …} with the answers and their queries."""
    found = {}
    dice.shows = "real"
    hand_in(tasks.claim_next(by=labeler), labeler)  # what is done once a day or person is done
    labeler_client.get(reverse("tasks"))
    for kind in ("real", "gold"):
        dice.shows = kind
        with CaptureQueriesContext(
            connection,
        ) as queries:
            claimed = labeler_client.post(reverse("task_next"))
        claim_queries = [query["sql"] for query in queries]
        page = labeler_client.get(claimed.url)
        task = Task.objects.get(uuid=claimed.url.rstrip("/").split("/")[-1])
        assert task.is_gold == (kind == "gold")
        ids = rows.response_ids(task)
        draft = task.drafts.get()
        fields = {f"place-{'ABC'[draft.shown_order.index(i)]}": str(n) for n, i in enumerate(ids, 1)}
        fields |= {f"quality-{letter}": "4" for letter in "ABC"} | {"submit_key": str(uuid.uuid4())}
        with CaptureQueriesContext(connection) as handing_in:
            submitted = labeler_client.post(reverse("task_submit", args=[task.uuid]), fields)
        submit_queries = len(handing_in)
        assert submitted.status_code == 302 and Submission.objects.filter(task=task).exists()
        submission = Submission.objects.get(task=task)
        found[kind] = {
            "task": task,
            "claim": claimed,
            "claim_queries": claim_queries,
            "page": page.content.decode(),
            "submit": submitted,
            "submit_queries": submit_queries,
            "history": labeler_client.get(reverse("submission", args=[submission.uuid])).content.decode(),
        }
    return found


def test_pages_addresses_and_headers_are_the_same(both):
    real, known = both["real"], both["gold"]
    assert masked(real["page"]) == masked(known["page"])
    assert masked(real["history"]) == masked(known["history"])
    for answer in ("claim", "submit"):
        assert masked(real[answer].url) == masked(known[answer].url)
        assert real[answer].headers.keys() == known[answer].headers.keys()
    for page in (known["page"], known["history"]):
        assert "gold" not in page.lower() and "right." not in page
        assert str(known["task"].pk) not in re.findall(r'"(\d+)"', page)


def statement(sql: str) -> str:
    return " ".join(re.findall(r"^\w+|labeling_\w+|procrastinate_\w+", sql)[:3])


def test_it_costs_the_same_queries_so_that_no_time_tells(both):
    real, known = ([statement(sql) for sql in both[kind]["claim_queries"]] for kind in ("real", "gold"))
    assert len(real) == len(known), (real, known)
    assert both["real"]["submit_queries"] == both["gold"]["submit_queries"]


def test_the_list_of_history_and_what_is_left_do_not_tell(batch, dice, labeler, labeler_client):
    def left() -> int:
        page = labeler_client.get(reverse("tasks"))
        return sum(each.count for each in page.context["left"])

    counts = [left()]
    for kind in ("real", "gold", "real", "gold", "real"):
        dice.shows = kind
        slot = tasks.claim_next(by=labeler)
        counts.append(left())
        hand_in(slot, labeler)
        assert left() == counts[-1]
    assert counts == [12, 11, 10, 9, 8, 7], "each task taken is one less, gold or not"
    lines = re.findall(r"<li class=\"row.*?</li>", labeler_client.get(reverse("history")).content.decode(), re.S)
    lines = [re.sub("<time.*?</time>", "", line, flags=re.S) for line in lines]
    assert len(lines) == 5 and len({masked(line) for line in lines}) == 1
    slot = tasks.claim_next(by=labeler)
    assert counts[-1] - left() == 1
    tasks.release(task=slot.task, by=labeler)
    assert left() == 7, "one that is put back counts again"


def test_nobody_gets_their_own_prompt_or_another_groups_batch_as_gold(dice, labeler, heldout_labeler):
    batch = rows.make_ranking_batch(prompts=3, k=2, group="held_out")
    Batch.objects.update(gold_percent=50)
    make_gold(batch.tasks.first(), order="ab")
    dice.shows = "gold"
    assert tasks.claim_next(by=labeler) is None
    assert gold.left_for(labeler) == {} and gold.left_for(heldout_labeler)
    Batch.objects.update(status="paused")
    assert tasks.claim_next(by=heldout_labeler) is None


# Making, releasing, withdrawing ----------------------------------------------------------------------------------------


def test_released_gold_is_shown_to_who_did_it_and_to_nobody_else(batch, dice, labeler, labeler_client, researcher):
    ranked = hand_in(tasks.claim_next(by=labeler), labeler)
    gold.release(gold=make_gold(ranked.task), by=researcher)
    dice.shows = "gold"
    slot = tasks.claim_next(by=labeler)
    made = hand_in(slot, labeler)
    page = reverse("submission", args=[made.uuid])
    assert "A is right." not in labeler_client.get(page).content.decode()
    answer = GoldAnswer.objects.get(task=slot.task)
    gold.release(gold=answer, by=researcher)
    gold.release(gold=answer, by=researcher)
    shown = labeler_client.get(page).content.decode()
    assert "A is right." in shown and "Change it" not in shown
    assert labeler_client.post(reverse("submission_reopen", args=[made.uuid])).status_code == 409
    ids = rows.response_ids(slot.task)
    answer = builders.ranking_answer([[ids[1]], [ids[0]], [ids[2]]])
    with pytest.raises(Conflict, match="stays as you handed it in"):
        submissions.submit(task=slot.task, submit_key=uuid.uuid4(), answer=answer, by=labeler)
    numbers.measure()
    assert made.numbers.revision == 1 and made.numbers.gold_share == 1
    assert slot.task_id not in gold_tasks(batch), "it is mixed in no more"
    before = labeler_client.get(reverse("submission", args=[ranked.uuid])).text
    assert "A is right." not in before and "Change it" in before, "to them it was a task like any other"


def test_withdrawn_gold_measures_nobody_and_its_seats_are_open_again(batch, dice, labeler, researcher):
    dice.shows = "gold"
    slot = tasks.claim_next(by=labeler)
    made = hand_in(slot, labeler, "cba")
    numbers.measure()
    assert made.numbers.gold_passed is False
    gold.withdraw(gold=GoldAnswer.objects.get(task=slot.task), by=researcher)
    assert Slot.objects.filter(task=slot.task, status="open").count() == 2
    assert numbers.measure() == 1
    assert SubmissionNumbers.objects.get(submission=made).gold_passed is None
    assert made.is_gold, "what was made on a gold seat stays out of exports"


def test_a_rejected_gold_submission_opens_no_seat(batch, dice, labeler, reviewer):
    dice.shows = "gold"
    made = hand_in(tasks.claim_next(by=labeler), labeler)
    reviews.review(submission=made, verdict="rejected", comment="", revision=1, seen_review=0, by=reviewer)
    assert not Slot.objects.filter(task=made.task, status="open").exists()


def test_gold_is_made_of_a_task_that_nobody_has_ranked(batch, researcher_client, reviewer_client):
    page, known = reverse("batch", args=[batch.pk]), gold_tasks(batch)
    listed, read = researcher_client.get(page).text, reviewer_client.get(page).text
    for task in batch.tasks.all():
        address = reverse("gold_new", args=[task.uuid])
        assert (address in listed) == (task.pk not in known) and address not in read


def test_what_makes_no_gold_answer(db, researcher):
    batch = rows.make_ranking_batch(k=3)
    task = batch.tasks.get()
    a, b, c = rows.response_ids(task)
    for tiers, message in (
        ([[a], [b]], "every response has one place"),
        ([[a], [b], [c], [a]], "every response has one place"),
        ([[a, b, c]], "must order something"),
    ):
        with pytest.raises(Invalid, match=message):
            gold.make(task=task, tiers=tiers, explanation="x", by=researcher)
    with pytest.raises(Invalid, match="say why"):
        gold.make(task=task, tiers=[[a], [b, c]], explanation=" ", by=researcher)
    demonstration = rows.make_demonstration_batch(prompts=1).tasks.get()
    with pytest.raises(Invalid, match="only a ranking"):
        gold.make(task=demonstration, tiers=[], explanation="x", by=researcher)
    gold.make(task=task, tiers=[[a], [b, c]], explanation="x", by=researcher)
    with pytest.raises(Conflict):
        gold.make(task=task, tiers=[[a], [b, c]], explanation="x", by=researcher)


def test_a_researcher_makes_gold_from_a_submissions_page(researcher_client, reviewer_client, labeler, labeler2):
    task = rows.make_ranking_batch(k=3, overlap=2).tasks.get()
    first, _second = [hand_in(tasks.claim_next(by=each), each) for each in (labeler, labeler2)]
    page, address = reverse("review", args=[first.uuid]), reverse("gold_new", args=[task.uuid])
    assert address in researcher_client.get(page).text and researcher_client.get(address).status_code == 200
    assert address not in reviewer_client.get(page).text
