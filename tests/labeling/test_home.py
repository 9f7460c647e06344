"""The front door: home by role, health."""

import pytest
from django.db import OperationalError

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
