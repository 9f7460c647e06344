"""What the job makes of submissions: pairs, consensus, numbers of submissions and labelers, reports; each against counting by hand."""

import pytest

from labeling.actions import numbers
from labeling.models import (
    AgreementFigure,
    AgreementPair,
    AgreementReport,
    Consensus,
    LabelerNumbers,
    Submission,
    SubmissionNumbers,
)
from tests import builders
from tests.labeling import rows


@pytest.fixture
def people(make_user):
    """Three training labelers and one held-out."""
    made = [make_user(f"l{i}@example.org", "labeler") for i in range(3)]
    return [*made, make_user("h@example.org", "labeler", group="held_out")]


def submit(task, labeler, order: str, qualities: str = "", flags: str = "") -> Submission:
    """A ranking of the task's responses a, b, c, … in order of making: "ab,c" ties a and b. Per response a quality digit, a flag y/n/-."""
    ids = dict(zip("abcdefghi", rows.response_ids(task), strict=False))
    ratings = {
        ids[name]: {
            "quality": int(qualities[i]) if qualities else None,
            "flags": {"hallucination": {"y": True, "n": False, "-": None}[flags[i]]} if flags else {},
        }
        for i, name in enumerate(list(ids)[: len(ids)])
    }
    return rows.submit(task, labeler, tiers=[[ids[n] for n in tier] for tier in order.split(",")], ratings=ratings)


def test_pairs_consensus_and_numbers_of_one_task(people):
    task = rows.make_ranking_batch(k=3, overlap=4).tasks.get()
    first, second, _third, heldout = people
    ab = submit(task, first, "a,b,c", "753", "nny")
    ab2 = submit(task, second, "a,b,c", "743", "n-y")
    ba = submit(task, heldout, "b,a,c", "573", "nyy")
    assert numbers.measure() == 1
    pairs = {(p.first_id, p.second_id): p for p in AgreementPair.objects.all()}
    assert {key: p.share for key, p in pairs.items()} == {
        (ab.pk, ab2.pk): 1, (ab.pk, ba.pk): 2 / 3, (ab2.pk, ba.pk): 2 / 3,
    }  # fmt: skip
    assert [p.between for p in pairs.values()].count("between") == 2
    a, b, c = rows.response_ids(task)
    agreed = Consensus.objects.get()
    assert agreed.tiers == [[a], [b], [c]] and agreed.rankings == 3
    assert agreed.support == pytest.approx((1 + 1 + 2 / 3) / 3)
    of = {each.submission_id: each for each in SubmissionNumbers.objects.all()}
    assert of[ab.pk].others == 2 and of[ab.pk].agreement == pytest.approx((1 + 2 / 3) / 2)
    assert of[ba.pk].agreement == pytest.approx(2 / 3) and of[ba.pk].disagreement == pytest.approx(1 / 3)
    # The two others of `ab` order a and b oppositely: their consensus ties them, and `ab` is measured by c alone.
    assert of[ab.pk].consensus_agreement == 1
    assert of[ba.pk].consensus_agreement == pytest.approx(2 / 3)


def test_only_what_changed_is_measured_again(people):
    batch = rows.make_ranking_batch(prompts=2, k=2, overlap=2)
    one, other = batch.tasks.order_by("pk")
    for task in (one, other):
        for labeler in people[:2]:
            submit(task, labeler, "a,b")
    assert numbers.measure() == 2
    assert numbers.measure() == 0
    ids = rows.response_ids(one)
    rows.revise(Submission.objects.get(task=one, labeler=people[0]), tiers=[[ids[1]], [ids[0]]])
    assert numbers.measure() == 1
    assert AgreementPair.objects.get(task=one).share == 0
    assert Consensus.objects.get(task=one).tiers == [sorted(ids)], "opposite rankings tie"
    assert AgreementPair.objects.get(task=other).share == 1
    assert numbers.measure(everything=True) == 2


def test_a_rejected_ranking_is_in_no_consensus(people):
    task = rows.make_ranking_batch(k=2, overlap=3).tasks.get()
    for labeler, order in zip(people[:3], ("a,b", "a,b", "b,a"), strict=True):
        submit(task, labeler, order)
    numbers.measure()
    assert Consensus.objects.get().rankings == 3
    Submission.objects.filter(labeler=people[2]).update(status="rejected")
    assert numbers.measure() == 1
    assert Consensus.objects.get().rankings == 2
    assert AgreementPair.objects.count() == 3, "but it says how far that labeler agrees with others"


def test_simulated_labelers_are_compared_with_their_like_only(people, make_user):
    task = rows.make_ranking_batch(k=2, overlap=3).tasks.get()
    submit(task, people[0], "a,b")
    submit(task, people[1], "a,b")
    robot = submit(task, make_user("robot@example.org", "labeler", is_simulated=True), "b,a")
    Submission.objects.filter(pk=robot.pk).update(origin="simulated")
    numbers.measure()
    assert AgreementPair.objects.count() == 1
    assert Consensus.objects.get().rankings == 2
    assert AgreementReport.objects.get(batch=task.batch).origin == "person"
    assert SubmissionNumbers.objects.get(submission=robot).others == 0


def test_a_report_by_group_and_between_over_rankings_ratings_and_flags(people):
    batch = rows.make_ranking_batch(prompts=2, k=3, overlap=4)
    one, other = batch.tasks.order_by("pk")
    submit(one, people[0], "a,b,c", "753", "nny")
    submit(one, people[1], "a,b,c", "753", "nny")
    submit(one, people[3], "c,b,a", "753", "yyn")
    submit(other, people[0], "a,b,c", "641", "nnn")
    submit(other, people[3], "a,bc", "641", "---")
    numbers.measure()
    found = {(f.measure, f.between): f for f in AgreementFigure.objects.filter(report__batch=batch)}
    assert found["share", "training"].value == 1 and found["share", "training"].count == 1
    # between: task one 0 and 0, task other 2/3
    assert found["share", "between"].value == pytest.approx((0 + 2 / 3) / 2) and found["share", "between"].count == 3
    assert found["share", "all"].value == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert found["share_untied", "between"].value == pytest.approx((0 + 1) / 2)
    assert found["quality", "all"].value == pytest.approx(1) and found["quality", "all"].count == 15
    # task one, training against held-out: n/y, n/y, y/n twice over: o = [[0, 6], [6, 0]], n = 12: α = 1 − 11·12 / (2·6·6)
    assert found["flag:hallucination", "between"].value == pytest.approx(1 - 11 * 12 / 72)
    assert found["flag:hallucination", "all"].count == 9, "what was left unanswered is no judgment"
    assert ("share", "held_out") not in found
    report = AgreementReport.objects.get(batch=batch)
    assert (report.submissions, report.shared_tasks) == (5, 2)
    assert AgreementReport.objects.get(batch=None).figures.count() == report.figures.count()


def test_labelers(people):
    batch = rows.make_ranking_batch(prompts=3, k=2, overlap=3)
    for number, task in enumerate(batch.tasks.order_by("pk")):
        for labeler in people[:2]:
            submit(task, labeler, "a,b")
        submit(task, people[2], "b,a" if number else "a,b")
    Submission.objects.filter(labeler=people[0]).update(active_seconds=40)
    people[0].skips.create(task=rows.make_ranking_batch("more").tasks.get(), reason="unclear")
    numbers.measure()
    of = {each.labeler_id: each for each in LabelerNumbers.objects.all()}
    good, bad = of[people[0].pk], of[people[2].pk]
    assert good.agreement == pytest.approx((1 + 1 / 2 + 1 / 2) / 3) and good.agreement_count == 3
    assert bad.agreement == pytest.approx(1 / 3) and bad.agreement_low <= 1 / 3 <= bad.agreement_high
    assert good.skip_rate == 1 / 4 and good.ranking_seconds == 40 and bad.ranking_seconds is None
    assert good.reliability > bad.reliability
    assert [week["submissions"] for week in good.weeks] == [3] and good.weeks[0]["agreement_count"] == 3


def test_signs_of_text_not_written(people):
    source = "Bees make honey from nectar, which they gather from flowers and dry with their wings in the hive."
    prompt = builders.prompt("Tell me how bees make their honey.")
    rows.make_responses(prompt, source)
    task = builders.task(builders.batch(name="demos", overlap=4), prompt)
    copied = rows.submit(task, people[0], text=source.upper() + " Yes.")
    own = "They visit blossoms, carry what they find home in a pouch, and fan it until most of the water is gone."
    written = rows.submit(task, people[1], text=own)
    pasted = rows.submit(task, people[2], text=own[::-1])
    Submission.objects.filter(pk=written.pk).update(active_seconds=30, paste_chars=10)
    Submission.objects.filter(pk=pasted.pk).update(active_seconds=2, paste_chars=90)
    numbers.measure()
    of = {each.submission_id: each for each in SubmissionNumbers.objects.all()}
    assert of[copied.pk].is_near_copy and of[copied.pk].near_copy_of == str(prompt.responses.get().uuid)
    assert not of[written.pk].is_near_copy and not of[written.pk].is_too_fast and not of[written.pk].is_pasted
    assert of[pasted.pk].is_too_fast and of[pasted.pk].is_pasted and of[pasted.pk].speed == len(own) / 2
    assert of[copied.pk].speed is None, "no time was counted"
    worth = SubmissionNumbers.objects.worth_a_look().values_list("submission_id", flat=True)
    assert set(worth) == {copied.pk, pasted.pk}
