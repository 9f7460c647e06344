"""Keys of the gateway: made and ended in the console, found by their hash, limited across processes, counted by day."""

import hashlib
import re
import threading
from datetime import date, timedelta

import pytest
from django.db import IntegrityError, connection, transaction
from django.urls import reverse
from django.utils import timezone

from labeling.actions import gateway_keys
from labeling.errors import Conflict, Invalid
from labeling.models import GatewayKey, GatewayUsage, RateBucket
from labeling.models.gateway_keys import Amounts

pytestmark = pytest.mark.django_db
NEW = {"organization": "Acme", "name": "app", "requests_per_minute": 60, "tokens_per_minute": 5000, "days": 30}


@pytest.fixture
def admin(client_for, admin_user):
    return client_for(admin_user)


def secret_in(page: str) -> str:
    return re.search(r'id="secret">(heedgw_[\w-]+)<', page)[1]


# ---- the console ----------------------------------------------------------------------------------------------------


def test_a_key_is_shown_once_and_only_its_hash_is_kept(admin, admin_user):
    page = admin.post(reverse("gateway_keys"), NEW | {"may_train": "on"})
    secret = secret_in(page.text)
    assert "no-store" in page["Cache-Control"]
    assert "may be kept and used to train models" in page.text
    key = GatewayKey.objects.get()
    assert (key.organization, key.may_train, key.created_by, key.consent_by) == ("Acme", True, admin_user, admin_user)
    assert key.secret_hash == hashlib.sha256(secret.encode()).hexdigest()
    assert timedelta(days=29) < key.expires_at - timezone.now() < timedelta(days=31)
    assert gateway_keys.find(secret) == key
    for where in (reverse("gateway_keys"), reverse("gateway_key", args=[key.pk])):
        assert secret not in admin.get(where).text
        assert key.prefix in admin.get(where).text


@pytest.mark.parametrize(
    "change",
    [
        {"organization": ""}, {"organization": "  "}, {"name": ""}, {"days": 0}, {"days": 4000}, {"tokens_per_minute": 0},
        {"requests_per_minute": "many"}, {"organization": "x" * 101},
    ],
)  # fmt: skip
def test_a_wrong_key_is_refused_and_the_form_keeps_what_was_typed(admin, change):
    page = admin.post(reverse("gateway_keys"), NEW | {"name": "typed"} | change)
    assert page.status_code == 422
    assert "typed" in page.text or change == {"name": ""}
    assert not GatewayKey.objects.exists()


def test_a_name_is_free_again_once_its_key_is_revoked(admin):
    assert admin.post(reverse("gateway_keys"), NEW).status_code == 200
    again = admin.post(reverse("gateway_keys"), NEW)
    assert again.status_code == 422
    assert "has a key named" in again.text
    key = GatewayKey.objects.get()
    for _ in range(2):
        assert admin.post(reverse("gateway_key_revoke", args=[key.pk])).status_code == 302
    key.refresh_from_db()
    assert not key.is_valid
    assert admin.post(reverse("gateway_keys"), NEW).status_code == 200


def test_consent_and_limits_change_with_who_and_when(admin, admin_user):
    key, _ = gateway_keys.create(organization="Acme", name="app", may_train=False, by=None)
    before = key.consent_at
    url = reverse("gateway_key", args=[key.pk])
    form = {"requests_per_minute": 5, "tokens_per_minute": 70, "expires_at": "2031-02-03T04:05"}
    assert admin.post(url, form | {"requests_per_minute": 0}).status_code == 422
    assert admin.post(url, form).status_code == 302
    key.refresh_from_db()
    assert (key.requests_per_minute, key.tokens_per_minute, key.expires_at.year) == (5, 70, 2031)
    assert (key.consent_at, key.consent_by) == (before, None)
    admin.post(url, form | {"may_train": "on"})
    key.refresh_from_db()
    assert key.may_train
    assert key.consent_by == admin_user
    assert key.consent_at > before


def test_a_revoked_key_stays_as_it_was(admin, admin_user):
    key, secret = gateway_keys.create(organization="Acme", name="app", may_train=False, by=None)
    gateway_keys.revoke(key=key, by=admin_user)
    form = {"may_train": "on", "requests_per_minute": 5, "tokens_per_minute": 70, "expires_at": "2031-02-03T04:05"}
    assert admin.post(reverse("gateway_key", args=[key.pk]), form).status_code == 409
    with pytest.raises(Conflict):
        gateway_keys.change(
            key=key,
            may_train=True,
            requests_per_minute=1,
            tokens_per_minute=1,
            expires_at=timezone.now(),
            by=admin_user,
        )
    assert not gateway_keys.find(secret).may_train
    assert not gateway_keys.find(secret).is_valid


def test_the_list_sums_use_in_a_constant_number_of_queries(admin, django_assert_max_num_queries):
    today = timezone.localdate()
    for n in range(3):
        key, _ = gateway_keys.create(organization=f"Org {n}", name="app", may_train=False, by=None)
        for days in (0, 1, 40):
            amounts = Amounts(requests=1000 + n, errors=1, prompt_tokens=100_000, completion_tokens=1)
            GatewayUsage.objects.add(key_id=key.pk, day=today - timedelta(days=days), amounts=amounts)
    GatewayUsage.objects.add(key_id=None, day=today, amounts=Amounts(requests=7))
    with django_assert_max_num_queries(12):
        page = admin.get(reverse("gateway_keys")).text
    assert ">2,004<" in page  # two of the three days
    assert ">200,002<" in page
    assert "7 requests" in page
    detail = admin.get(reverse("gateway_key", args=[GatewayKey.objects.get(organization="Org 0").pk])).text
    assert detail.count(">1,000<") == 3


# ---- what holds whatever the door -----------------------------------------------------------------------------------


def test_only_the_secret_opens(admin_user):
    key, secret = gateway_keys.create(organization="Acme", name="app", may_train=False, by=admin_user)
    assert gateway_keys.find(secret[:-1]) is None
    assert gateway_keys.find("") is None
    assert gateway_keys.find(key.secret_hash) is None
    assert gateway_keys.find(secret).is_valid
    first = GatewayKey.objects.get().last_used_at
    assert first is not None
    gateway_keys.find(secret)
    assert GatewayKey.objects.get().last_used_at == first
    GatewayKey.objects.update(expires_at=timezone.now())
    assert not gateway_keys.find(secret).is_valid


def test_the_database_refuses_what_makes_no_sense():
    key, _ = gateway_keys.create(organization="Acme", name="app", may_train=False, by=None)
    for change in ({"requests_per_minute": 0}, {"tokens_per_minute": 0}, {"organization": ""}, {"name": ""}):
        with pytest.raises(IntegrityError), transaction.atomic():
            GatewayKey.objects.filter(pk=key.pk).update(**change)
    with pytest.raises(Invalid):
        gateway_keys.create(organization="Acme", name="b", may_train=False, tokens_per_minute=0, by=None)


def test_use_adds_up_for_keys_and_for_the_playground():
    day = date(2026, 5, 4)
    for _ in range(3):
        GatewayUsage.objects.add(key_id=None, day=day, amounts=Amounts(requests=1, completion_tokens=5, captured=1))
    row = GatewayUsage.objects.get()
    assert (row.requests, row.completion_tokens, row.captured, row.errors) == (3, 15, 3, 0)


# ---- the rate limit -------------------------------------------------------------------------------------------------


def turn_back(seconds: float) -> None:
    """As if the bucket had been looked at that long ago."""
    RateBucket.objects.update(filled_at=timezone.now() - timedelta(seconds=seconds))


def take(requests: int = 6, tokens: int = 600) -> int:
    return RateBucket.objects.take("key:1", requests_per_minute=requests, tokens_per_minute=tokens)


def test_requests_are_let_in_until_the_bucket_is_empty_and_again_as_it_refills():
    assert [take() for _ in range(6)] == [0] * 6
    assert take() == 10  # 6 a minute: one in 10 seconds
    assert take() == 10  # being refused costs nothing
    turn_back(21)
    assert [take(), take()] == [0, 0]
    assert 8 <= take() <= 10
    turn_back(3600)
    assert [take() for _ in range(7)] == [0] * 6 + [10]  # never more than a minute's worth


def test_tokens_are_paid_off_before_the_next_request():
    assert take() == 0
    RateBucket.objects.charge("key:1", 1200)  # two minutes' worth
    assert 60 <= take() <= 61
    turn_back(61)
    assert take() == 0
    RateBucket.objects.charge("key:1", 5)
    RateBucket.objects.charge("key:2", 5)  # no such bucket: nothing
    assert RateBucket.objects.count() == 1


def test_a_lowered_limit_holds_at_once():
    assert take(requests=1000) == 0
    assert [take(requests=2), take(requests=2), take(requests=2)] == [0, 0, 30]


@pytest.mark.django_db(transaction=True)
def test_the_limit_holds_across_connections():
    let_in, start = [], threading.Barrier(8)

    def ask() -> None:
        start.wait()
        for _ in range(10):
            let_in.append(take(requests=20) == 0)
        connection.close()

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(let_in) == 80
    assert sum(let_in) in (20, 21)  # 21: a third of a second for one more may pass meanwhile
