"""Applications: written, kept, sent, changed, withdrawn; and what an applicant's home says."""

import pytest

from labeling.actions import applications as actions
from labeling.errors import Conflict, Forbidden
from labeling.models import Application, Decision
from tests.conftest import PASSWORD

pytestmark = pytest.mark.django_db
FORM = {
    "name": "Ada",
    "languages": "English, Twi",
    "why": "I read a lot.",
    "hours_per_week": "10",
    "availability": "Evenings",
}


def apply(client, button="send", **fields):
    return client.post("/application/", FORM | {"consents": "on", button: "1"} | fields)


def test_an_application_is_written_and_sent(applicant_client, applicant):
    assert "Write the application" in applicant_client.get("/").text
    assert "trains and evaluates language models" in applicant_client.get("/application/").text
    for _ in range(2):  # a double click
        assert apply(applicant_client).url == "/"
    sent = Application.objects.get(user=applicant)
    assert (sent.status, sent.languages, sent.hours_per_week, sent.rules.version) == (
        "submitted",
        "English, Twi",
        10,
        1,
    )
    applicant.refresh_from_db()
    assert (applicant.name, applicant.statement) == ("Ada", "I read a lot.")
    home = applicant_client.get("/").text
    assert "has been sent" in home and "English, Twi" in home


@pytest.mark.parametrize("field", ["name", "languages", "why", "hours_per_week", "consents"])
def test_what_is_missing_is_said_and_the_rest_is_kept(applicant_client, field):
    refused = apply(applicant_client, **{field: ""})
    assert refused.status_code == 422 and refused.context["form"].errors.keys() == {field}
    assert "Evenings" in refused.text
    assert Application.objects.get().status == "draft"
    assert "Evenings" in applicant_client.get("/application/").text


def test_a_wrong_number_of_hours_is_refused(applicant_client):
    for hours in ("0", "81", "many"):
        assert apply(applicant_client, hours_per_week=hours).status_code == 422


def test_a_draft_is_kept_unsent(applicant_client):
    apply(applicant_client, "keep", languages="", consents="")
    assert "is not sent yet" in applicant_client.get("/").text
    assert "I read a lot." in applicant_client.get("/application/").text


def test_what_was_sent_can_be_changed_but_not_emptied(applicant_client):
    apply(applicant_client)
    apply(applicant_client, languages="French", consents="")  # consent was given before
    assert Application.objects.get().languages == "French"
    assert apply(applicant_client, "keep", languages="").status_code == 422
    assert (Application.objects.get().languages, Application.objects.get().status) == ("French", "submitted")


def test_withdrawn_and_sent_again(applicant_client):
    apply(applicant_client)
    for _ in range(2):
        applicant_client.post("/application/withdraw")
    assert Application.objects.get().status == "withdrawn"
    assert "You have withdrawn" in applicant_client.get("/").text
    apply(applicant_client, consents="")
    assert Application.objects.get().status == "submitted"


def test_once_decided_it_stays(applicant_client, applicant, researcher):
    apply(applicant_client)
    Decision.objects.create(user=applicant, verdict="declined", reason="No.", message="Sorry.", decided_by=researcher)
    home = applicant_client.get("/").text
    assert "decided not to go on" in home and "Sorry." in home
    assert apply(applicant_client, languages="French").status_code == 409
    assert applicant_client.post("/application/withdraw").status_code == 409
    assert Application.objects.get().languages == "English, Twi"
    with pytest.raises(Conflict):
        actions.withdraw(by=applicant)


def test_only_applicants_apply(client, client_for, labeler, researcher):
    for person in (labeler, researcher):
        assert client_for(person).get("/application/").status_code == 403
        assert client_for(person).post("/application/withdraw").status_code == 403
    assert client.get("/application/").url.startswith("/accounts/login/")
    with pytest.raises(Forbidden):
        actions.save(name="x", why="x", languages="x", hours_per_week=1, send=True, by=labeler)


def test_what_was_sent_after_the_session_ended_is_shown_again_to_its_writer_alone(client, applicant, make_user):
    client.force_login(applicant)
    owner = client.get("/application/").context["owner_key"]
    client.logout()
    for who, seen in ((make_user("other@example.org", "applicant"), False), (applicant, True)):
        answer = client.post("/application/", FORM | {"why": "A long story.", "owner": owner})
        client.post(answer.url, {"login": who.email, "password": PASSWORD})
        assert ("A long story." in client.get("/application/").text) is seen
        client.logout()


def test_accepting_without_a_screening_keeps_the_decision(client_for, admin_user, applicant):
    for _ in range(2):
        client_for(admin_user).post(f"/console/people/{applicant.pk}/accept", {"group": "held_out"})
    decision = Decision.objects.get()
    assert (decision.verdict, decision.group, decision.screening, decision.decided_by) == (
        "accepted",
        "held_out",
        None,
        admin_user,
    )
