"""Django's admin: for admins, by the common log-in, to read."""

import pytest
from django.contrib import admin
from django.urls import reverse

from labeling.actions import tokens
from labeling.models import ApiToken
from tests.labeling.rows import make_ranking_batch, submit

pytestmark = pytest.mark.django_db
OURS = sorted((m for m in admin.site._registry if m._meta.app_label == "labeling"), key=lambda m: m._meta.model_name)


@pytest.fixture
def rows(labeler, admin_user):
    submission = submit(make_ranking_batch().tasks.get(), labeler)
    tokens.create(user=admin_user, name="t", scopes=["read"])
    return submission


def test_there_is_one_log_in(client):
    response = client.get(reverse("admin:login"))
    assert response.status_code == 302
    assert response["Location"].startswith(reverse("account_login"))


@pytest.mark.parametrize("who", ["labeler", "reviewer", "researcher", "applicant"])
def test_others_stay_out(client_for, request, who):
    response = client_for(request.getfixturevalue(who)).get(reverse("admin:index"), follow=True)
    assert response.status_code == 403


@pytest.mark.parametrize("model", OURS, ids=lambda m: m._meta.model_name)
def test_every_list_is_read_and_nothing_is_added_or_deleted(model, rows, client_for, admin_user):
    client, name = client_for(admin_user), model._meta.model_name
    assert client.get(reverse(f"admin:labeling_{name}_changelist")).status_code == 200
    assert client.get(reverse(f"admin:labeling_{name}_add")).status_code == 403
    row = model._default_manager.first()
    if row is not None:
        page = client.get(reverse(f"admin:labeling_{name}_change", args=[row.pk]))
        assert page.status_code == 200
        assert b'name="_save"' not in page.content
        assert client.post(reverse(f"admin:labeling_{name}_change", args=[row.pk]), {}).status_code == 403
        assert client.post(reverse(f"admin:labeling_{name}_delete", args=[row.pk]), {"post": "yes"}).status_code == 403


def test_no_secret_is_shown(rows, client_for, admin_user):
    client, token = client_for(admin_user), ApiToken.objects.get()
    page = client.get(reverse("admin:labeling_apitoken_change", args=[token.pk]))
    assert token.secret_hash not in page.text
    person = client.get(reverse("admin:labeling_user_change", args=[admin_user.pk]))
    assert admin_user.password not in person.text


def test_tokens_can_be_ended(rows, client_for, admin_user):
    token = ApiToken.objects.get()
    data = {"action": "revoke", "_selected_action": [token.pk]}
    client_for(admin_user).post(reverse("admin:labeling_apitoken_changelist"), data)
    token.refresh_from_db()
    assert not token.is_valid
