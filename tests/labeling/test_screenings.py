"""Screening: a try dealt, kept, handed in; graded blind; figures worked by hand; decided by people, with reasons that stay."""

import re
from datetime import timedelta

import pytest
from django.core import mail
from django.db import IntegrityError, connection, transaction
from django.urls import reverse
from django.utils import timezone

from labeling import exercise_answers, jobs
from labeling.actions import applications, exercises
from labeling.actions import screenings as actions
from labeling.errors import Conflict, Forbidden, Invalid
from labeling.models import Attempt, Decision, Exercise, Grade, Screening, ScreeningRules, User, WorkEntry

pytestmark = pytest.mark.django_db
ROWS = [
    *({"purpose": "screening", "part": "flagging", "prompt": f"Text {n}", "reference": {"prompt_flags": {"sensitive": n % 2 == 0}}}
      for n in range(4)),
    {"purpose": "screening", "part": "ranking", "prompt": "Name a fruit.", "responses": {"a": "Pear", "b": "Fig", "c": "Stone"},
     "reference": {"tiers": [["a", "b"], ["c"]]}},
    {"purpose": "screening", "part": "demonstration", "prompt": "Console me.", "explanation": "Warmth."},
    {"purpose": "screening", "part": "demonstration", "prompt": "Calm me."},
]  # fmt: skip


@pytest.fixture
def items(researcher):
    exercises.load(rows=ROWS, by=None)
    return actions.set_rules(
        flagging_items=4, ranking_items=1, demonstration_items=2, groups=["Sailors"], topics=["Weather"], by=researcher
    )


@pytest.fixture
def applied(items, applicant):
    """Somebody whose application was sent."""
    sent = {"name": "Ada Applicant", "why": "Because.", "languages": "Twi", "hours_per_week": 9, "consents": True}
    applications.save(**sent, send=True, by=applicant)
    return applicant


def fill(screening, *, wrong_flags=0, tiers=(("a", "b"), ("c",)), text="There, there."):
    """Answer everything; the first flags wrongly."""
    for attempt in screening.attempts.select_related("exercise"):
        content = {"text": text}
        if attempt.exercise.part == "flagging":
            said = attempt.exercise.reference["prompt_flags"]["sensitive"]
            content = {"prompt_flags": {"sensitive": said != (attempt.position <= wrong_flags)}}
        elif attempt.exercise.part == "ranking":
            content = {"tiers": [list(tier) for tier in tiers]}
        exercises.save_attempt(attempt=attempt, content=content, by=screening.user)
    actions.save_self_assessment(
        screening=screening, groups={"Sailors": "yes"}, topics={"Weather": "unsaid"}, comment="", by=screening.user
    )


@pytest.fixture
def handed_in(applied):
    """One wrong flag of four, one wrong comparison of three."""
    screening = actions.begin(by=applied)
    fill(screening, wrong_flags=1, tiers=(("a",), ("b",), ("c",)))
    return actions.hand_in(screening=screening, by=applied)


@pytest.fixture
def desk(client_for, researcher):
    return client_for(researcher)


@pytest.fixture
def researcher2(make_user):
    return make_user("researcher2@example.org", "researcher", name="Ravi Researcher")


# ---- the applicant's road -------------------------------------------------------------------------------------------


def test_through_all_four_parts_by_plain_forms(applied, applicant_client):
    assert "Next comes the screening" in applicant_client.get("/").text
    assert "Four parts" in applicant_client.get("/screening/").text
    for _ in range(2):
        assert applicant_client.post("/screening/begin").url == "/screening/"
    screening = Screening.objects.get()
    refused = applicant_client.post("/screening/submit")
    assert refused.status_code == 422 and "0 of 4 are done" in refused.text and "About you" in refused.text
    for attempt in screening.attempts.select_related("exercise").order_by("position"):
        url = reverse("screening_item", args=[attempt.uuid])
        page = applicant_client.get(url)
        assert "Warmth." not in page.text  # what graders look for
        empty = applicant_client.post(url, {})
        assert empty.status_code == 422 and "Kept, but not complete yet" in empty.text
        fields = {"flag-sensitive": "yes", "text": "My words."}
        fields |= {f"place-{letter}": "1" for letter in exercise_answers.letters_of(attempt.shown_order).values()}
        assert applicant_client.post(url, fields).status_code == 302
    about = "/screening/about-you/"
    missing = applicant_client.post(about, {"group-0": "partly", "comment": "I sail."})
    assert missing.status_code == 422 and "Weather" in missing.text and "I sail." in missing.text
    assert "I sail." in applicant_client.get(about).text
    said = {"group-0": "partly", "topic-0": "no", "comment": "I sail. " * 1000}
    assert applicant_client.post(about, said).url == "/screening/"
    for _ in range(2):
        assert applicant_client.post("/screening/submit").url == "/"
    screening.refresh_from_db()
    assert screening.submitted_at and screening.self_assessment["groups"] == {"Sailors": "partly"}
    assert screening.self_assessment["comment"].strip() == said["comment"].strip()  # whole, however long
    assert "You handed the screening in" in applicant_client.get("/").text
    assert applicant_client.get(about).url == "/"
    late = applicant_client.post(reverse("screening_item", args=[attempt.uuid]), {"text": "other"})
    assert late.status_code == 409 and "handed in already" in late.text
    assert Attempt.objects.get(pk=attempt.pk).content == {"text": "My words."}


def test_what_is_typed_is_kept_for_later(applied, applicant_client):
    screening = actions.begin(by=applied)
    attempt = screening.attempts.filter(exercise__part="demonstration").first()
    url = reverse("screening_item", args=[attempt.uuid])
    assert "Saved" in applicant_client.post(url + "save", {"text": "half a"}).text
    assert "half a" in applicant_client.get(url).text
    assert applicant_client.post(url, {"text": "", "later": "1"}).url == "/screening/"
    attempt.refresh_from_db()
    assert attempt.content == {"text": ""}


def test_without_items_a_person_decides_without_a_screening(applicant, applicant_client):
    sent = {"name": "Ada", "why": "So.", "languages": "Twi", "hours_per_week": 9, "consents": True}
    applications.save(**sent, send=True, by=applicant)
    assert "nothing else to do" in applicant_client.get("/").text
    assert applicant_client.get("/screening/").url == "/"
    assert applicant_client.post("/screening/begin").status_code == 409


def test_nobody_begins_before_applying_or_for_others(items, applicant, labeler, client_for, client, make_user):
    assert client_for(applicant).post("/screening/begin").status_code == 409
    assert client_for(labeler).post("/screening/begin").status_code == 403
    assert client_for(labeler).get("/screening/").status_code == 403
    assert client.get("/screening/").url.startswith("/accounts/login/")
    sent = {"name": "Ada", "why": "So.", "languages": "Twi", "hours_per_week": 9, "consents": True}
    applications.save(**sent, send=True, by=applicant)
    attempt = actions.begin(by=applicant).attempts.first()
    other = client_for(make_user("other@example.org", "applicant"))
    assert other.get(reverse("screening_item", args=[attempt.uuid])).status_code == 404
    assert other.post(reverse("screening_save", args=[attempt.uuid])).status_code == 404
    assert other.post("/screening/submit").url == "/"


def test_the_page_tells_neither_ids_nor_answers(applied, applicant_client, researcher):
    exercises.set_retired(exercise=Exercise.objects.get(part="ranking"), is_retired=True, by=researcher)
    row = {"purpose": "screening", "part": "ranking", "prompt": "Which?", "responses": {"the-best": "X", "the-worst": "Y"},
           "reference": {"tiers": [["the-best"], ["the-worst"]]}, "explanation": "Because of X."}  # fmt: skip
    exercises.add(row=row, by=None)
    attempt = actions.begin(by=applied).attempts.get(exercise__part="ranking")
    page = applicant_client.get(reverse("screening_item", args=[attempt.uuid])).text
    assert not re.search("the-best|the-worst|Because of X", page)


# ---- figures, by hand -----------------------------------------------------------------------------------------------


def test_figures_are_those_worked_by_hand(handed_in, researcher, researcher2):
    figures = actions.figures_of([handed_in])[handed_in.pk]
    assert (figures.flagging, figures.ranking) == (3 / 4, 2 / 3)
    assert (figures.demonstration, figures.grades, figures.grades_wanted) == (None, 0, 4)
    first, second = handed_in.attempts.filter(exercise__part="demonstration").order_by("position")
    for attempt, by, grade in ((first, researcher, 7), (first, researcher2, 6), (second, researcher, 5)):
        actions.grade(attempt=attempt, grade=grade, by=by)
    assert actions.figures_of([handed_in])[handed_in.pk].demonstration is None  # blind until all are in
    actions.grade(attempt=second, grade=6, by=researcher2)
    assert actions.figures_of([handed_in])[handed_in.pk].demonstration == (6.5 + 5.5) / 2


def test_a_share_below_the_cutoff_is_not_rounded_up_to_it():
    from labeling.templatetags.joining import percent

    assert (percent(0.7499), percent(0.75), percent(0.29), percent(1.0)) == ("74", "75", "29", "100")


# ---- grading --------------------------------------------------------------------------------------------------------


def test_graders_see_neither_the_author_nor_each_other(handed_in, desk, client_for, researcher2):
    page = desk.get(reverse("grading"), follow=True)
    assert "Warmth." in page.text or "Calm me." in page.text
    assert "Ada" not in page.text and "applicant@" not in page.text and "There, there." in page.text
    url = page.redirect_chain[-1][0]
    assert desk.post(url, {"comment": "Hm."}).status_code == 422
    assert desk.post(url, {"grade": "8"}).status_code == 422
    for _ in range(2):
        assert desk.post(url, {"grade": "6", "comment": "Warm-hearted."}).status_code == 302
    late = desk.post(url, {"grade": "2", "comment": "On second thoughts."})
    assert late.status_code == 409 and "On second thoughts." in late.text
    assert Grade.objects.get().grade == 6
    second = client_for(researcher2)
    assert "Warm-hearted" not in second.get(url).text
    candidate = second.get(reverse("candidate", args=[handed_in.uuid])).text
    assert "Warm-hearted" not in candidate and "1 of 2 have graded it" in candidate
    assert "Warm-hearted" in desk.get(reverse("candidate", args=[handed_in.uuid])).text  # one's own
    second.post(url, {"grade": "7"})
    assert "Warm-hearted" in second.get(reverse("candidate", args=[handed_in.uuid])).text


def test_no_more_graders_than_the_rules_say_and_never_oneself(handed_in, researcher, researcher2, make_user, applied):
    attempt = handed_in.attempts.filter(exercise__part="demonstration").first()
    for by in (researcher, researcher2):
        actions.grade(attempt=attempt, grade=5, by=by)
    with pytest.raises(Conflict):
        actions.grade(attempt=attempt, grade=5, by=make_user("third@example.org", "researcher"))
    with pytest.raises(IntegrityError), transaction.atomic():
        Grade.objects.create(attempt=attempt, seat=2, grader=applied, grade=5)
    applied.grant("researcher")
    other = handed_in.attempts.filter(exercise__part="demonstration").last()
    with pytest.raises(Forbidden):
        actions.grade(attempt=other, grade=7, by=applied)
    assert other not in actions.to_grade(applied)
    flagged = handed_in.attempts.filter(exercise__part="flagging").first()
    with pytest.raises(Conflict):
        actions.grade(attempt=flagged, grade=7, by=researcher)
    with pytest.raises(Invalid, match="Comment has 5001 characters"):
        actions.grade(attempt=other, grade=7, comment="x" * 5001, by=researcher)


def test_another_one_may_be_graded_first(handed_in, desk):
    first = desk.get(reverse("grading")).url
    second = desk.get(reverse("grading") + "?after=" + first.split("/")[-2]).url
    assert first != second
    for url in (first, second):
        desk.post(url, {"grade": "6"})
    assert "Nothing waits for your grade" in desk.get(reverse("grading")).text


# ---- deciding -------------------------------------------------------------------------------------------------------


def decide(client, screening, **fields):
    form = {
        "verdict": "accepted",
        "group": "held_out",
        "reason": "Careful.",
        "message": "Welcome!",
        "although_ungraded": "on",
        "seen": "0",
    } | fields
    return client.post(reverse("candidate_decide", args=[screening.uuid]), form)


def test_who_it_is_is_shown_only_after_the_decision(handed_in, desk):
    listed, page = desk.get(reverse("candidates")).text, desk.get(reverse("candidate", args=[handed_in.uuid])).text
    for text in (listed, page):
        assert handed_in.code in text
        assert "Ada" not in text and "applicant@" not in text and "Because." not in text
    assert "75 %" in page and "66 %" in page and "0 of 4 grades" in page
    for _ in range(2):  # a double click
        assert decide(desk, handed_in).status_code == 302
    user = User.objects.get(email="applicant@example.org")
    assert (user.role_names, user.group) == ({"labeler"}, "held_out")
    decision = Decision.objects.get()
    assert (decision.reason, decision.decided_by.name) == ("Careful.", "Rosa Researcher")
    assert "Ada Applicant" in desk.get(reverse("candidate", args=[handed_in.uuid])).text
    (message,) = mail.outbox
    assert message.to == ["applicant@example.org"] and "Welcome!" in message.body and "Careful." not in message.body


def test_hours_of_the_screening_are_entered_only_when_they_have_a_name(applied, desk):
    handed_in = actions.begin(by=applied)
    fill(handed_in)
    Attempt.objects.filter(position=1).update(active_seconds=90)
    actions.hand_in(screening=handed_in, by=applied)
    assert not WorkEntry.objects.exists() and "Ada" not in desk.get(reverse("hours_all")).text
    decide(desk, handed_in, verdict="declined")
    shown = [reverse("candidate", args=[handed_in.uuid]), reverse("candidates") + "?state=any", reverse("hours_all")]
    assert all("Ada" in desk.get(page).text for page in shown)
    decide(desk, handed_in, verdict="retake", seen=Decision.objects.latest("pk").pk)
    new = Screening.objects.create(user=applied, number=2, rules=handed_in.rules)
    shown += [reverse("candidate", args=[new.uuid]), reverse("hours_all_csv")]
    assert not any("Ada" in text or "applicant@" in text for text in (desk.get(page).text for page in shown))
    new.delete()
    decide(desk, handed_in, seen=Decision.objects.latest("pk").pk)  # on second thoughts
    assert entered() == [90]
    assert WorkEntry.objects.get().screening == handed_in


def entered() -> list[int]:
    return list(WorkEntry.objects.filter(activity="screening").order_by("id").values_list("seconds", flat=True))


def test_hours_of_who_withdraws_are_entered_with_the_self_assessment_and_go_on_when_they_come_back(
    applied, applicant_client
):
    applicant_client.post("/screening/begin")
    applicant_client.get("/screening/about-you/")
    Screening.objects.update(worked_at=timezone.now() - timedelta(seconds=40))
    User.objects.update(worked_until=None)
    applicant_client.post("/screening/about-you/", {"group-0": "yes", "topic-0": "no", "later": "1"})
    screening = Screening.objects.get()
    assert screening.active_seconds == pytest.approx(40, abs=2) and entered() == []
    Attempt.objects.filter(position=1).update(active_seconds=20)
    for _twice in range(2):
        assert applicant_client.post(reverse("application_withdraw")).status_code == 302
    assert entered() == [pytest.approx(60, abs=2)]
    sent = {"name": "Ada", "why": "Because.", "languages": "Twi", "hours_per_week": 9, "consents": True}
    applications.save(**sent, send=True, by=applied)
    fill(screening)
    Attempt.objects.filter(position=1).update(active_seconds=50)
    actions.hand_in(screening=screening, by=applied)
    applications.withdraw(by=applied)
    assert entered() == [pytest.approx(60, abs=2), pytest.approx(30, abs=2)]


def test_hours_of_who_does_not_come_back_to_a_retake_are_entered_after_a_month(handed_in, desk):
    decide(desk, handed_in, verdict="retake")
    cooldown = ScreeningRules.objects.latest("version").cooldown_days
    assert jobs.enter_lapsed_retakes() is None and entered() == [], "they may still come, and are to stay nameless"
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL heed.erasure = 'on'")
    Decision.objects.update(decided_at=timezone.now() - timedelta(days=cooldown + 31))
    for _twice in range(2):
        jobs.enter_lapsed_retakes()
    assert entered() == [0]


def test_a_decision_needs_a_reason_and_keeps_what_was_typed(handed_in, desk):
    refused = decide(desk, handed_in, reason=" ", message="Kind words.")
    assert refused.status_code == 422 and "Kind words." in refused.text
    assert decide(desk, handed_in, verdict="").status_code == 422
    assert decide(desk, handed_in, group="").status_code == 422
    assert not Decision.objects.exists() and not mail.outbox


def test_who_decides_with_grades_missing_says_so(handed_in, desk):
    shown = desk.get(reverse("candidate", args=[handed_in.uuid])).text
    assert "0 of 4" in shown.split("decide-title")[-1] and "Decide although grades are missing" in shown
    refused = decide(desk, handed_in, reason="In haste.", although_ungraded="")
    assert refused.status_code == 422 and "0 of 4 grades" in refused.text and "In haste." in refused.text
    assert not Decision.objects.exists() and decide(desk, handed_in).status_code == 302
    assert "although grades" not in desk.get(reverse("candidate", args=[handed_in.uuid])).text


def test_two_people_do_not_decide_past_each_other(handed_in, desk, client_for, researcher2):
    decide(desk, handed_in, verdict="declined")
    refused = decide(client_for(researcher2), handed_in, reason="I like them.")
    assert (
        refused.status_code == 409
        and "Rosa Researcher has decided already" in refused.text
        and "I like them." in refused.text
    )
    again = decide(client_for(researcher2), handed_in, reason="I like them.", seen=Decision.objects.get().pk)
    assert again.status_code == 302
    assert [d.verdict for d in Decision.objects.order_by("id")] == ["declined", "accepted"]
    assert len(mail.outbox) == 2


def test_a_retake_waits_for_the_cool_down_and_brings_other_items(
    handed_in, desk, applied, applicant_client, researcher
):
    actions.set_rules(demonstration_items=1, by=researcher)
    third = {"purpose": "screening", "part": "demonstration", "prompt": "Cheer me."}
    decide(desk, handed_in, verdict="retake", message="Mind the ties.")
    for page in (reverse("candidate", args=[handed_in.uuid]), reverse("candidates") + "?state=decided"):
        assert "Ada" not in desk.get(page).text  # or the next try would be known by it
    home = applicant_client.get("/").text
    assert re.search(r"You can begin on \d{4}-\d\d-\d\d \d\d:\d\d UTC\.", home) and "Mind the ties." in home
    assert applicant_client.post("/screening/begin").status_code == 409
    actions.set_rules(cooldown_days=0, by=researcher)
    assert applicant_client.post("/screening/begin").status_code == 409  # the decision named its own days
    with transaction.atomic():
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL heed.erasure = 'on'")
        Decision.objects.update(decided_at=timezone.now() - timedelta(days=15))
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL heed.erasure = ''")
    exercises.add(row=third, by=None)
    assert applicant_client.post("/screening/begin").url == "/screening/"
    second = Screening.objects.get(number=2)
    assert (
        second.attempts.get(exercise__part="demonstration").exercise.preview == "Cheer me."
    )  # the only one not met before
    fill(second)
    actions.hand_in(screening=second, by=applied)
    refused = decide(desk, second, verdict="retake", seen=Decision.objects.get().pk)
    assert refused.status_code == 422 and "2 tries" in refused.text
    assert decide(desk, handed_in, seen=Decision.objects.get().pk).status_code == 409  # the first try is over
    assert decide(desk, second, seen=Decision.objects.get().pk).status_code == 302


def test_who_withdrew_is_not_decided_on(handed_in, desk, applied):
    applications.withdraw(by=applied)
    assert handed_in.code not in desk.get(reverse("candidates")).text
    assert desk.get(reverse("candidate", args=[handed_in.uuid])).status_code == 404
    assert decide(desk, handed_in).status_code == 409
    assert desk.get(reverse("grading")).status_code == 200


def test_unfinished_tries_show_no_answers(applied, desk):
    screening = actions.begin(by=applied)
    fill(screening)
    assert screening.code in desk.get(reverse("candidates") + "?state=working").text
    page = desk.get(reverse("candidate", args=[screening.uuid])).text
    assert "There, there." not in page and "Not handed in yet" in page
    assert decide(desk, screening).status_code == 409


def test_what_was_handed_in_graded_and_decided_stays(handed_in, researcher):
    actions.grade(attempt=handed_in.attempts.filter(exercise__part="demonstration").first(), grade=6, by=researcher)
    actions.decide(screening=handed_in, verdict="declined", reason="No.", although_ungraded=True, by=researcher)
    for change in (
        lambda: Screening.objects.update(self_assessment={}),
        lambda: Attempt.objects.update(content={}),
        lambda: Grade.objects.update(grade=7),
        lambda: Decision.objects.update(reason="Yes."),
        lambda: Decision.objects.all().delete(),
        lambda: ScreeningRules.objects.update(max_tries=9),
        lambda: Decision.objects.create(user=handed_in.user, verdict="accepted", reason="x"),
        lambda: Decision.objects.create(user=handed_in.user, verdict="declined", reason=""),
        lambda: Screening.objects.create(user=handed_in.user, number=1, rules=handed_in.rules),
    ):
        with pytest.raises(IntegrityError), transaction.atomic():
            change()


def test_actions_refuse(handed_in, labeler, researcher):
    with pytest.raises(Forbidden):
        actions.decide(screening=handed_in, verdict="declined", reason="No.", by=labeler)
    with pytest.raises(Invalid):
        actions.decide(screening=handed_in, verdict="maybe", reason="No.", by=researcher)
    with pytest.raises(Forbidden):
        actions.set_rules(max_tries=3, by=labeler)


# ---- the rules ------------------------------------------------------------------------------------------------------


def test_rules_are_kept_as_versions(desk, items, applied):
    screening = actions.begin(by=applied)
    page = desk.get(reverse("screening_rules"))
    form = {name: value for name, value in page.context["form"].initial.items() if not isinstance(value, list)}
    form |= {"groups": "Sailors\n\nSailors\nPilots", "topics": "Weather", "ranking_cutoff": "0.8"}
    for _ in range(2):
        assert desk.post(reverse("screening_rules"), form).status_code == 302
    newest = ScreeningRules.objects.order_by("-version")[0]
    assert (newest.version, newest.groups, newest.ranking_cutoff) == (3, ["Sailors", "Pilots"], 0.8)
    screening.refresh_from_db()
    assert screening.rules == items
    for wrong in (
        {"ranking_cutoff": "2"},
        {"graders": "0"},
        {"flagging_items": "0", "ranking_items": "0", "demonstration_items": "0"},
    ):
        assert desk.post(reverse("screening_rules"), form | wrong).status_code == 422


def test_the_list_asks_the_same_number_of_questions_whatever_the_rows(
    items, make_user, desk, django_assert_max_num_queries
):
    sent = {"name": "A", "why": "So.", "languages": "Twi", "hours_per_week": 9, "consents": True}
    for n in range(8):
        person = make_user(f"a{n}@example.org", "applicant")
        applications.save(**sent, send=True, by=person)
        screening = actions.begin(by=person)
        fill(screening)
        actions.hand_in(screening=screening, by=person)
    with django_assert_max_num_queries(14):
        assert len(desk.get(reverse("candidates")).context["rows"]) == 8
    with django_assert_max_num_queries(24):
        desk.get(reverse("candidate", args=[screening.uuid]))
