"""The front door: home by role, health."""

from urllib.parse import urlencode

import pytest
from django.db import OperationalError
from django.test import Client

from labeling.views import home


@pytest.mark.django_db
def test_health_is_told_to_strangers(client):
    response = client.get("/healthz")
    assert (response.status_code, response.json()) == (200, {"ok": True})
    assert client.post("/healthz").status_code == 405


@pytest.mark.django_db
def test_health_says_when_the_database_is_away(client, monkeypatch):
    class Away:
        def cursor(self):
            raise OperationalError("connection refused")

    monkeypatch.setattr(home, "connection", Away())
    response = client.get("/healthz")
    assert (response.status_code, response.json()["ok"]) == (503, False)


@pytest.mark.parametrize(
    ("role", "target"),
    [("labeler", "/tasks/"), ("reviewer", "/console/submissions/"), ("researcher", "/console/submissions/")],
)
def test_home_is_where_a_roles_day_starts(role, target, make_user, client_for):
    response = client_for(make_user("someone@example.org", role)).get("/")
    assert (response.status_code, response["Location"]) == (302, target)


def test_applicants_wait_and_strangers_log_in(applicant, client_for, client):
    assert b"appl" in client_for(applicant).get("/").content.lower()
    assert client.get("/")["Location"].startswith("/accounts/login/")


def test_favicon_answers_everyone(client):
    assert client.get("/favicon.ico").url.endswith("heed.svg")


@pytest.mark.django_db
def test_a_form_that_is_too_long_is_refused_in_words(reviewer, settings):
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 2 * 2**20
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(reviewer)
    browser.get("/console/submissions/")  # for the CSRF cookie
    form = {"seen": "x" * (2 * 2**20 + 1)}
    answer = browser.post("/console/submissions/accept", urlencode(form), "application/x-www-form-urlencoded")
    assert answer.status_code == 413
    assert b"a form takes 2 MB" in answer.content
    headers = {"Accept": "application/json"}
    answer = browser.post("/console/submissions/accept", form, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    settings.DATA_UPLOAD_MAX_NUMBER_FIELDS = 3
    answer = browser.post("/console/submissions/accept", {"seen": ["x"] * 4})
    assert answer.status_code == 413
    assert b"more fields" in answer.content
