"""Accounts: logging in and out, applying, invitations, passwords by e-mail, second factors, closed doors."""

import re

import pytest
from django.urls import reverse

from labeling.actions import people
from labeling.models import User
from tests.conftest import PASSWORD

pytestmark = pytest.mark.django_db

NEW_PASSWORD = "a long walk in the rain"


@pytest.fixture
def mail_folder(settings, tmp_path):
    """E-mail as the default settings send it: one file per message."""
    settings.EMAIL_BACKEND = "django.core.mail.backends.filebased.EmailBackend"
    settings.EMAIL_FILE_PATH = str(tmp_path)
    return tmp_path


def mails(folder) -> list[str]:
    return [path.read_text() for path in sorted(folder.iterdir())]


def sign_up(client, email="new@example.org", **fields):
    form = {"email": email, "name": "Nova New", "password1": NEW_PASSWORD, "password2": NEW_PASSWORD} | fields
    return client.post("/accounts/signup/", form)


def log_in(client, email, password=PASSWORD):
    return client.post("/accounts/login/", {"login": email, "password": password})


@pytest.mark.parametrize("address", ["login", "signup", "password/reset", "password/reset/done"])
def test_entrances_are_open_and_strict(client, address):
    page = client.get(f"/accounts/{address}/")
    assert page.status_code == 200 and "Heed" in page.text
    assert not re.search(r'\sstyle="|<style|\son\w+="', page.text)


@pytest.mark.parametrize(
    ("person", "target"),
    [("labeler", "/tasks/"), ("reviewer", reverse("reviews")), ("researcher", reverse("reviews")), ("applicant", None)],
)
def test_home_leads_by_role(request, client, person, target):
    user = request.getfixturevalue(person)
    assert log_in(client, user.email.upper()).url == "/"
    home = client.get("/")
    assert home.url == target if target else "read your application" in home.text


def test_navigation_is_by_role(client_for, labeler, reviewer, admin_user, applicant):
    def links(user):
        page = client_for(user).get("/", follow=True).text
        return set(re.findall(r"<a href=\"(/[a-z/]+/)", page.split("<nav")[1].split("</nav>")[0]))

    assert links(labeler) >= {"/tasks/", "/history/"}
    assert "/tasks/" not in links(reviewer) and reverse("reviews") in links(reviewer)
    assert reverse("gateway_keys") in links(admin_user) - links(reviewer)
    assert links(applicant) == set()


def test_navigation_opens_the_section_that_one_is_in(client_for, labeler, reviewer):
    def current(user, path):
        page = client_for(user).get(path, follow=True).text
        return re.findall(r'aria-current="page">([^<]+)<', page)

    assert current(labeler, "/history/feedback/") == ["History"]  # one section: its pages alone
    assert current(reviewer, "/console/gold/")[:2] == ["Quality", "Gold"]
    assert current(reviewer, "/console/forms/")[:2] == ["Batches", "Forms"]


def test_wrong_password_says_so(client, labeler):
    page = log_in(client, labeler.email, "wrong")
    assert page.status_code == 200 and "errorlist" in page.text
    assert client.get("/tasks/").status_code == 302


def test_log_out_needs_a_post(labeler_client):
    assert labeler_client.get("/accounts/logout/").status_code == 200
    assert labeler_client.get("/tasks/").status_code == 200
    assert labeler_client.post("/accounts/logout/").status_code == 302
    assert labeler_client.get("/tasks/").status_code == 302


def test_applying_makes_an_applicant(client, mail_folder):
    assert sign_up(client, statement="I read a lot.").status_code == 302
    user = User.objects.get(email="new@example.org")
    assert (user.role_names, user.name, user.statement) == ({"applicant"}, "Nova New", "I read a lot.")
    assert "I read a lot." in client.get("/").text
    assert client.get("/tasks/").status_code == 403


@pytest.mark.parametrize(
    "fields",
    [{"email": "nobody"}, {"password2": "another"}, {"password1": "12345", "password2": "12345"}, {"name": ""}],
)
def test_a_wrong_application_says_so(client, fields):
    page = sign_up(client, **fields)
    assert page.status_code == 200 and "errorlist" in page.text
    assert not User.objects.exists()


@pytest.mark.parametrize("sign_up_by", ["invitation", "closed"])
def test_applying_can_be_closed(client, settings, sign_up_by):
    settings.SIGN_UP = sign_up_by
    assert "by invitation" in sign_up(client).text
    assert "Apply as a labeler" not in client.get("/accounts/login/").text
    assert not User.objects.exists()


def test_an_invitation_serves_once(client, client_for, admin_user, settings, mail_folder):
    settings.SIGN_UP = "invitation"
    _invitation, secret = people.invite(email="new@example.org", role="labeler", group="held_out", by=admin_user)
    page = client.get(f"/invitation/{secret}/", follow=True)
    assert "You have been invited" in page.text
    assert sign_up(client).status_code == 302
    user = User.objects.get(email="new@example.org")
    assert (user.role_names, user.group) == ({"labeler"}, "held_out")
    client.post("/accounts/logout/")
    for gone in (secret, "made up"):
        refused = client.get(f"/invitation/{gone}/")
        assert refused.status_code == 410 and "no longer open" in refused.text
    assert "by invitation" in sign_up(client, email="second@example.org").text
    assert User.objects.filter(email__startswith="second").count() == 0


def test_password_reset_by_mail_from_end_to_end(client, labeler, mail_folder):
    assert client.post("/accounts/password/reset/", {"email": labeler.email}).status_code == 302
    [mail] = mails(mail_folder)
    assert "[Heed]" in mail
    link = re.search(r"http://testserver(/accounts/password/reset/key/\S+)", mail).group(1)
    form = client.get(link, follow=True)
    assert form.status_code == 200
    address = form.redirect_chain[-1][0]
    done = client.post(address, {"password1": NEW_PASSWORD, "password2": NEW_PASSWORD}, follow=True)
    assert done.status_code == 200
    client.post("/accounts/logout/")
    assert log_in(client, labeler.email).status_code == 200  # the old one no longer works
    assert log_in(client, labeler.email, NEW_PASSWORD).status_code == 302
    assert 'name="password1"' not in client.get(link, follow=True).text  # a link serves once


def test_password_reset_tells_nobody_who_has_an_account(client, labeler, mail_folder):
    known = client.post("/accounts/password/reset/", {"email": labeler.email}, follow=True)
    unknown = client.post("/accounts/password/reset/", {"email": "nobody@example.org"}, follow=True)
    assert known.status_code == unknown.status_code == 200
    assert known.redirect_chain == unknown.redirect_chain


def test_changing_the_password(labeler_client, labeler, mail_folder):
    form = {"oldpassword": PASSWORD, "password1": NEW_PASSWORD, "password2": NEW_PASSWORD}
    assert labeler_client.post("/accounts/password/change/", form).status_code == 302
    labeler.refresh_from_db()
    assert labeler.check_password(NEW_PASSWORD)


def test_too_many_wrong_passwords_are_slowed(client, labeler):
    answers = [log_in(client, labeler.email, "wrong") for _ in range(12)]
    assert any(answer.status_code == 429 or "Too many" in answer.text for answer in answers)


@pytest.mark.parametrize("address", ["/", "/tasks/", "/history/", "/admin/", "/accounts/password/change/"])
def test_closed_by_default(client, address):
    answer = client.get(address)
    assert answer.status_code == 302 and "login" in answer.url


def test_errors_have_pages_of_their_own(labeler_client, client, settings):
    assert "There is nothing here" in labeler_client.get("/nothing/").text
    assert "not for your role" in labeler_client.get(reverse("reviews")).text
    from django.test import Client

    strict = Client(enforce_csrf_checks=True)
    refused = strict.post("/accounts/login/", {"login": "a", "password": "b"})
    assert refused.status_code == 403 and "out of date" in refused.text


def test_server_errors_have_a_page_that_asks_for_nothing(client, labeler, monkeypatch, django_assert_num_queries):
    from django.template.loader import render_to_string

    with django_assert_num_queries(0):
        assert "wrong on our side" in render_to_string("500.html")
