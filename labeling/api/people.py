"""/people/ and /invitations/: who is here, and inviting others."""

from typing import Any

from django.db import transaction
from django.http import Http404
from django.urls import reverse
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from labeling.actions import people
from labeling.api.base import PageQuery, StrictSerializer, Text, View, page, page_of, query_of
from labeling.api.schema import operation
from labeling.languages import CODES
from labeling.models import Group, Role, User


class PersonQuery(PageQuery):
    """Which people, and which page of them."""

    role = serializers.ChoiceField(Role.choices, required=False)
    group = serializers.ChoiceField(Group.choices, required=False)
    is_active = serializers.BooleanField(required=False)


class PersonOut(serializers.Serializer):
    id = serializers.IntegerField()
    name = serializers.CharField(allow_blank=True)
    email = serializers.EmailField()
    roles = serializers.ListField(child=serializers.ChoiceField(Role.choices))
    group = serializers.ChoiceField(Group.choices)
    languages = serializers.ListField(
        child=serializers.CharField(), help_text="What they read and write well: ISO 639."
    )
    skills = serializers.ListField(child=serializers.CharField())
    is_active = serializers.BooleanField()
    is_paused = serializers.BooleanField()
    is_simulated = serializers.BooleanField()
    created_at = serializers.DateTimeField()


class PersonIn(StrictSerializer):
    """Which batches are for them; what is absent stays as it is."""

    languages = serializers.ListField(child=serializers.ChoiceField(CODES), required=False, max_length=len(CODES))
    skills = serializers.ListField(child=Text(max_length=people.SKILL_MAX_CHARS), required=False, max_length=100)


class Email(Text, serializers.EmailField):
    """An e-mail address, as text."""


class InvitationIn(StrictSerializer):
    email = Email(max_length=254)
    role = serializers.ChoiceField([choice for choice in Role.choices if choice[0] != Role.APPLICANT])
    group = serializers.ChoiceField(Group.choices, required=False, default=Group.TRAINING)


class InvitationOut(serializers.Serializer):
    id = serializers.IntegerField()
    email = serializers.EmailField()
    role = serializers.ChoiceField(Role.choices)
    group = serializers.ChoiceField(Group.choices)
    expires_at = serializers.DateTimeField()
    link = serializers.CharField(
        allow_null=True, help_text="Where they sign up: shown once, sent to them by nobody but you."
    )


class People(View):
    scopes = {"GET": "admin"}

    @operation(
        scope="admin", answers={200: page_of(PersonOut)}, problems=(422,), parameters=[PersonQuery],
        operation_id="list_people", summary="People with their roles",
    )  # fmt: skip
    def get(self, request: Request) -> Response:
        query = self.checked(PersonQuery, query_of(request))
        rows = User.objects.prefetch_related("roles")
        rows = rows.filter(**{name: query[name] for name in ("group", "is_active") if name in query})
        if "role" in query:
            rows = rows.filter(roles__role=query["role"])
        return page(request, rows, _shown, query)


class OnePerson(View):
    scopes = {"PATCH": "admin"}

    @operation(
        scope="admin", answers={200: PersonOut}, request=PersonIn, problems=(404,),
        operation_id="set_person", summary="Somebody's languages and skills",
        description="A batch that asks for a language, or for skills, is only for labelers who have them. Seats that are held stay.",
    )  # fmt: skip
    def patch(self, request: Request, pk: int) -> Response:
        given = self.checked(PersonIn, request.data)
        with transaction.atomic():
            if "languages" in given:
                people.set_languages(user=_find(pk), codes=given["languages"], by=self.person)
            if "skills" in given:
                people.set_skills(user=_find(pk), skills=given["skills"], by=self.person)
        return Response(_shown(_find(pk)))


def _find(pk: int) -> User:
    found = User.objects.filter(pk=pk).first() if pk < 2**63 else None
    if found is None:
        raise Http404(f"There is no person {pk}.")
    return found


class Invitations(View):
    scopes = {"POST": "admin"}
    secrets = ("link",)

    @operation(
        scope="admin", answers={201: InvitationOut}, request=InvitationIn, creates=True,
        operation_id="invite", summary="Invite somebody, with a role",
        description="An open invitation of the same address ends by it.",
    )  # fmt: skip
    def post(self, request: Request) -> Response:
        invitation, secret = people.invite(**self.checked(InvitationIn, request.data), by=self.person)
        shown = {name: getattr(invitation, name) for name in ("id", "email", "role", "group", "expires_at")}
        link = request.build_absolute_uri(reverse("invitation", args=[secret]))
        return Response(shown | {"link": link}, status=201)


def _shown(person: User) -> dict[str, Any]:
    same = (
        "id",
        "name",
        "email",
        "group",
        "languages",
        "skills",
        "is_active",
        "is_paused",
        "is_simulated",
        "created_at",
    )
    return {name: getattr(person, name) for name in same} | {"roles": sorted(row.role for row in person.roles.all())}
