"""People: invitations, applications, roles, and who may no longer come in."""

import re

import pytest
from django.core import mail
from django.urls import reverse
from django.utils import timezone

from labeling.actions import people
from labeling.errors import Invalid
from labeling.models import Invitation, User
from tests.labeling.rows import make_demonstration_batch

pytestmark = pytest.mark.django_db
INVITE = {"email": "New@example.org", "role": "reviewer", "group": "training"}


@pytest.fixture
def admin(client_for, admin_user):
    return client_for(admin_user)


def link_in(text: str) -> str:
    return re.search(r"/invitation/[\w-]+/", text)[0]


# ---- invitations ----------------------------------------------------------------------------------------------------


def test_an_invitation_goes_out_and_its_link_is_shown(admin, admin_user, client):
    page = admin.post(reverse("invitation_create"), INVITE)
    assert page.status_code == 200
    (message,) = mail.outbox
    assert message.to == ["new@example.org"]
    assert "Amir Admin invites you" in message.body
    assert link_in(page.text) == link_in(message.body)
    assert Invitation.objects.get().invited_by == admin_user
    assert client.get(link_in(page.text))["Location"] == reverse("account_signup")
    assert link_in(page.text) not in admin.get(reverse("people")).text  # shown once


def test_inviting_twice_leaves_one_open_link(admin, client):
    first, second = (link_in(admin.post(reverse("invitation_create"), INVITE).text) for _ in range(2))
    assert sum(invitation.is_open for invitation in Invitation.objects.all()) == 1
    assert client.get(first).status_code == 410
    assert client.get(second).status_code == 302


def test_a_withdrawn_invitation_opens_nothing(admin, client):
    link = link_in(admin.post(reverse("invitation_create"), INVITE).text)
    for _ in range(2):
        admin.post(reverse("invitation_withdraw", args=[Invitation.objects.get().pk]))
    assert client.get(link).status_code == 410


@pytest.mark.parametrize(
    "change",
    [{"email": "no"}, {"email": "labeler@example.org"}, {"role": "applicant"}, {"role": "king"}, {"group": ""}],
)
def test_a_wrong_invitation_is_refused(admin, labeler, change):
    assert admin.post(reverse("invitation_create"), INVITE | change).status_code == 422
    assert not Invitation.objects.exists()
    assert not mail.outbox


def test_a_dead_mail_server_loses_no_invitation(admin, monkeypatch):
    def refuse(*args):
        raise ConnectionRefusedError

    monkeypatch.setattr("labeling.mail.send_mail", refuse)
    page = admin.post(reverse("invitation_create"), INVITE)
    assert "could not be sent" in page.text
    assert link_in(page.text)
    assert Invitation.objects.get().is_open


# ---- applications ---------------------------------------------------------------------------------------------------


def test_accepting_an_applicant(admin, applicant):
    assert "Ada Applicant" in admin.get(reverse("people")).text
    for _ in range(2):
        admin.post(reverse("applicant_accept", args=[applicant.pk]), {"group": "held_out"})
    applicant = User.objects.get(pk=applicant.pk)
    assert applicant.role_names == {"labeler"}
    assert applicant.group == "held_out"
    assert [m.to for m in mail.outbox] == [["applicant@example.org"]]


def test_only_applicants_are_accepted(admin, reviewer):
    page = admin.post(reverse("applicant_accept", args=[reviewer.pk]), {"group": "held_out"}, follow=True)
    assert "is no applicant" in page.text
    assert User.objects.get(pk=reviewer.pk).role_names == {"reviewer"}


# ---- roles ----------------------------------------------------------------------------------------------------------


def test_roles_and_group_are_set(admin, labeler):
    url = reverse("person", args=[labeler.pk])
    assert admin.post(url, {"roles": ["labeler", "reviewer"], "group": "held_out"}).status_code == 302
    labeler = User.objects.get(pk=labeler.pk)
    assert labeler.role_names == {"labeler", "reviewer"}
    assert labeler.group == "held_out"
    assert admin.post(url, {"roles": ["king"], "group": "training"}).status_code == 422


def test_the_last_admin_stays_one(admin, admin_user, make_user):
    url = reverse("person", args=[admin_user.pk])
    response = admin.post(url, {"roles": ["labeler"], "group": "training"})
    assert response.status_code == 422
    assert "last admin" in response.text
    make_user("second@example.org", "admin")
    assert admin.post(url, {"roles": ["labeler"], "group": "training"}).status_code == 302
    assert admin.get(url).status_code == 403


def test_an_admin_who_is_locked_out_does_not_count(admin_user, make_user):
    make_user("gone@example.org", "admin", is_active=False)
    with pytest.raises(Invalid, match="last admin"):
        people.set_roles(user=admin_user, roles=set(), group="training", by=admin_user)


def test_locking_out_frees_seats_and_keeps_labels(admin, labeler, labeler_client):
    slot = make_demonstration_batch(prompts=1).slots.get()
    slot.lease(labeler, timezone.now())
    slot.save()
    url = reverse("person_active", args=[labeler.pk])
    for _ in range(2):
        assert admin.post(url, {"active": "no"}).status_code == 302
    slot.refresh_from_db()
    assert slot.status == "open"
    assert labeler_client.get("/").status_code == 302
    admin.post(url, {"active": "yes"})
    assert User.objects.get(pk=labeler.pk).is_active


def test_nobody_locks_themselves_out(admin, admin_user):
    assert admin.post(reverse("person_active", args=[admin_user.pk]), {"active": "no"}).status_code == 422
    assert User.objects.get(pk=admin_user.pk).is_active


def test_people_are_found(admin, labeler, heldout_labeler, reviewer):
    def found(query):
        return {p.email for p in admin.get(reverse("people") + query).context["page"]}

    assert found("?search=LENA") == {"labeler@example.org"}
    assert found("?role=reviewer") == {"reviewer@example.org"}
    assert found("?group=held_out") == {"heldout@example.org"}
