"""`manage.py seed_demo`: a first look at Heed, made once however often it is asked for."""

import pytest
from django.core.management import CommandError, call_command

from labeling.actions import tokens
from labeling.models import Batch, ModelVersion, Prompt, Response, Screening, Slot, Task, User

COUNTED = (Screening, User, Prompt, Response, ModelVersion, Batch, Task, Slot)


@pytest.fixture
def seed(db, tmp_path, monkeypatch):
    """Run the command; returns what is there afterwards."""
    monkeypatch.setenv("HEED_DEMO_PASSWORD", "a demo password")

    def run() -> dict[str, int]:
        call_command("seed_demo", folder=tmp_path)
        return {model.__name__: model.objects.count() for model in COUNTED}

    return run


def test_makes_people_prompts_and_batches_once(seed, tmp_path):
    first = seed()
    assert all(first.values())
    token = (tmp_path / "token").read_text()
    assert seed() == first
    assert (tmp_path / "token").read_text() == token


def test_every_role_can_log_in(seed, client, tmp_path):
    seed()
    welcome = (tmp_path / "welcome.txt").read_text()
    roles = set()
    for user in User.objects.all():
        assert client.login(email=user.email, password="a demo password")
        assert user.email in welcome
        roles |= user.role_names
    assert roles == {"applicant", "labeler", "reviewer", "researcher", "admin"}
    assert User.objects.filter(group="held_out").count() == 1


def test_labelers_have_work_of_both_kinds(seed):
    seed()
    for email in ("labeler@demo.example", "heldout@demo.example"):
        kinds = Slot.objects.claimable_by(User.objects.get(email=email)).values_list("kind", flat=True)
        assert set(kinds) == {"demonstration", "ranking"}


def test_the_token_works_and_is_private(seed, tmp_path):
    seed()
    token = tokens.find((tmp_path / "token").read_text().strip())
    assert set(token.scopes) == {"read", "import", "train", "promote"}
    assert (tmp_path / "token").stat().st_mode & 0o077 == 0


def test_a_lost_token_is_replaced_and_the_old_one_revoked(seed, tmp_path):
    seed()
    old = (tmp_path / "token").read_text().strip()
    (tmp_path / "token").unlink()
    seed()
    assert tokens.find(old) is None
    assert tokens.find((tmp_path / "token").read_text().strip())


def test_people_keep_what_others_changed(seed):
    seed()
    User.objects.get(email="labeler@demo.example").grant("reviewer")
    seed()
    assert User.objects.get(email="labeler@demo.example").has_role("reviewer")


def test_a_password_is_required(seed, monkeypatch):
    monkeypatch.delenv("HEED_DEMO_PASSWORD")
    with pytest.raises(CommandError, match="HEED_DEMO_PASSWORD"):
        seed()


def test_a_model_that_is_refused_is_told_and_stops_nothing(seed, tmp_path, capsys):
    call_command("seed_demo", folder=tmp_path, base_model=tmp_path / "no model here")
    assert "was not registered" in capsys.readouterr().err
    assert User.objects.exists()


def test_the_pages_of_joining_are_not_empty(seed, client):
    seed()
    assert seed()["Screening"] == 2
    client.force_login(User.objects.get(email="researcher@demo.example"))
    assert len(client.get("/console/screening/").context["rows"]) == 1
    assert len(client.get("/console/screening/?state=working").context["rows"]) == 1
    assert client.get("/console/screening/grading/").status_code == 302  # there is one to grade
    client.force_login(User.objects.get(email="midway@demo.example"))
    assert "You are in the screening: 10 of 15" in client.get("/").text
    client.force_login(User.objects.get(email="newcomer@demo.example"))
    assert client.post("/tasks/next").url.startswith("/instructions/")
    client.force_login(User.objects.get(email="labeler@demo.example"))
    assert client.post("/tasks/next").url.startswith("/tasks/")
