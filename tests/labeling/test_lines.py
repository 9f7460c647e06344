"""Lines of open seats: whatever labelers do, a bookmark never hides a seat that is for them, and nobody pays for their history twice."""

import random
import threading
import uuid

import pytest
from django.db import connection, transaction

from labeling.actions import lines, reviews, submissions, tasks
from labeling.models import Bookmark, Draft, Skip, Slot, Submission, Task
from tests import builders
from tests.bench import assignment

pytestmark = pytest.mark.django_db


def hand_in(slot, by):
    return submissions.submit(task=slot.task, submit_key=uuid.uuid4(), answer={"text": "x"}, by=by)


@pytest.fixture
def batch():
    """Four demonstrations for two labelers each."""
    made = builders.batch(overlap=2)
    for i in range(4):
        builders.task(made, builders.prompt(f"p{i}"))
    return made


def test_a_claim_gives_nothing_only_when_nothing_is_left(make_user, reviewer, monkeypatch):
    """Three labelers, two batches, hundreds of random deeds, and a bookmark after every seat passed in vain."""
    monkeypatch.setattr(lines, "WORTH_A_BOOKMARK", 1)
    people = [make_user(f"l{i}@example.org", "labeler") for i in range(3)]
    rng = random.Random(5)
    for name, priority in (("a", 0), ("b", 1)):
        made = builders.batch(name=name, overlap=2, priority=priority)
        for i in range(3):
            builders.task(made, builders.prompt(f"{name} {i}"))
    empty = 0
    for _ in range(120):
        person = rng.choice(people)
        slot = tasks.claim_next(by=person)
        if slot is None:
            empty += 1
            assert not Slot.objects.claimable_by(person).exists()
            task = rng.choice(list(Task.objects.all()))
        else:
            task = slot.task
        deed = rng.random()
        waiting = Submission.objects.filter(status="submitted").order_by("?").first()
        if deed < 0.2 and waiting:
            seen = {"revision": waiting.revision_count, "comment": "No."}
            reviews.review(submission=waiting, verdict="rejected", by=reviewer, **seen)
        elif slot is None:
            continue
        elif deed < 0.35:
            hand_in(slot, person)
        elif deed < 0.55:
            tasks.release(task=task, by=person)
        elif deed < 0.6:
            tasks.skip(task=task, reason="unclear", by=person)
        elif deed < 0.95:
            Slot.objects.filter(pk=slot.pk).update(lease_expires_at="2000-01-01T00:00:00Z")
            tasks.return_expired()
    assert empty > 5
    assert Bookmark.objects.filter(turn__gt=0).exists()
    assert Skip.objects.exists()


def test_an_exhausted_line_is_not_walked_again(batch, labeler, django_assert_max_num_queries):
    while slot := tasks.claim_next(by=labeler):
        hand_in(slot, labeler)
    mark = Bookmark.objects.get(labeler=labeler, batch=batch)
    assert (mark.seat, mark.slot) == lines.END
    assert Slot.objects.filter(status="open").count() == 4
    with django_assert_max_num_queries(10) as seen:
        assert tasks.claim_next(by=labeler) is None
    sent = [each["sql"] for each in seen.captured_queries]
    assert any("heed_lines" in sql for sql in sent) and not any("take" in sql for sql in sent), "the line is not walked"


def test_a_seat_given_back_comes_before_those_not_begun(batch, labeler, labeler2):
    first, second = tasks.claim_next(by=labeler), tasks.claim_next(by=labeler2)
    tasks.release(task=first.task, by=labeler)
    tasks.skip(task=second.task, reason="unclear", by=labeler2)
    assert tasks.claim_next(by=labeler2).task == first.task
    assert tasks.claim_next(by=labeler).task == second.task
    assert Slot.objects.filter(status="open", turn__gt=0).count() == 0


def test_whatever_opens_a_seat_numbers_it(batch, labeler):
    slot = tasks.claim_next(by=labeler)
    Slot.objects.filter(pk=slot.pk).update(status="open", labeler=None, leased_at=None, lease_expires_at=None)
    Slot.objects.create(task=slot.task, seat=9, batch=batch, kind="demonstration")
    [first, second] = Slot.objects.filter(turn__gt=0).order_by("turn")
    assert (first.pk, second.seat) == (slot.pk, 9)


@pytest.mark.django_db(transaction=True)
def test_a_bookmark_does_not_pass_a_seat_that_is_just_being_opened(make_user):
    """Its number is given out, but nobody sees it yet; a later number is seen already."""
    person, other = make_user("l@example.org", "labeler"), make_user("o@example.org", "labeler")
    batch = builders.batch(overlap=2)
    done, begun = (builders.task(batch, builders.prompt(f"p{i}")) for i in range(2))
    Slot.objects.filter(task=begun, seat=2).delete()
    hand_in(tasks.claim_next(by=person), person)
    lease = {"leased_at": "2020-01-01T00:00Z", "lease_expires_at": "2100-01-01T00:00Z"}
    Slot.objects.filter(status="open").update(status="leased", labeler=other, **lease)
    Draft.objects.create(task=begun, labeler=other)
    opened, go_on = threading.Event(), threading.Event()

    def give_back() -> None:
        try:
            with transaction.atomic():
                tasks.release(task=begun, by=other)
                opened.set()
                go_on.wait(20)
        finally:
            connection.close()

    thread = threading.Thread(target=give_back)
    thread.start()
    assert opened.wait(20)
    Slot.objects.filter(task=done, seat=2).update(status="open", labeler=None, leased_at=None, lease_expires_at=None)
    assert tasks.claim_next(by=person) is None  # what is there is on a task that they have done
    go_on.set()
    thread.join(20)
    assert tasks.claim_next(by=person).task == begun


def test_a_claim_reads_no_more_pages_of_a_long_line_than_of_a_short_one(make_user):
    """What an index alone is asked shows in pages, not in rows: a bound that the index cannot stop at reads the line to its end."""
    pages = []
    assignment.empty()  # no dead rows of earlier tests; and its locks keep autovacuum away, which would note that tables are empty
    for priority, tasks_laid_out in enumerate((500, 20_000)):
        assignment.lay_out(tasks=tasks_laid_out, overlap=1, words=1, priority=priority)
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE labeling_slot, labeling_task, labeling_prompt, labeling_batch, labeling_user")
        people = [make_user(f"{tasks_laid_out}-{i}@example.org", "labeler") for i in range(3)]
        spent = [assignment.cost(lambda by=person: tasks.claim_next(by=by)) for person in people]
        assert all(slot for *_, slot in spent)
        pages.append(min(read for _ms, _rows, read, _slot in spent))
    assert pages[1] < pages[0] + 150  # levels of indexes and a seat's own pages, 64; 260 if a line is read to its end
