"""The console's people: applicants to accept, roles and groups, invitations."""

from django import forms
from django.contrib import messages
from django.db import transaction
from django.db.models import Count, Exists, OuterRef, Prefetch, Q
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from labeling import languages, mail
from labeling.actions import people
from labeling.errors import HeedError
from labeling.models import Group, Invitation, Role, User, UserRole
from labeling.views.access import Request, role_required
from labeling.views.listing import FilterForm, paginate, query_without


class Filters(FilterForm):
    """Which people to list."""

    search = forms.CharField(label=gettext_lazy("Name or e-mail"), required=False, max_length=200)
    role = forms.ChoiceField(
        label=gettext_lazy("Role"), required=False, choices=[("", gettext_lazy("any")), *Role.choices]
    )
    group = forms.ChoiceField(
        label=gettext_lazy("Group"), required=False, choices=[("", gettext_lazy("any")), *Group.choices]
    )

    def rows(self):
        """The people that pass."""
        chosen, rows = self.chosen, User.objects.all()
        if search := chosen.get("search"):
            rows = rows.filter(Q(email__icontains=search) | Q(name__icontains=search))
        if role := chosen.get("role"):
            rows = rows.filter(Exists(UserRole.objects.filter(user=OuterRef("pk"), role=role)))
        return rows.filter(group=chosen["group"]) if "group" in chosen else rows


class InviteForm(forms.Form):
    """Whom to invite, as what."""

    email = forms.EmailField(label=gettext_lazy("E-mail address"), max_length=254)
    role = forms.ChoiceField(
        label=gettext_lazy("Role"), choices=[choice for choice in Role.choices if choice[0] != Role.APPLICANT],
        initial=Role.LABELER,
    )  # fmt: skip
    group = forms.ChoiceField(label=gettext_lazy("Group"), choices=Group.choices, initial=Group.TRAINING)


class PersonForm(forms.Form):
    """What an admin decides about a person."""

    roles = forms.MultipleChoiceField(
        label=gettext_lazy("Roles"), choices=Role.choices, required=False, widget=forms.CheckboxSelectMultiple
    )
    group = forms.ChoiceField(
        label=gettext_lazy("Group"),
        choices=Group.choices,
        help_text=gettext_lazy(
            "Held-out labels evaluate and are never trained on. Labels made before keep their group."
        ),
    )
    skills = forms.CharField(
        label=gettext_lazy("Skills"),
        help_text=gettext_lazy("With commas between. Batches that ask for a skill are only for labelers who have it."),
        required=False,
        max_length=2000,
        widget=forms.TextInput(attrs={"list": "known-skills"}),
    )
    languages = forms.MultipleChoiceField(
        label=gettext_lazy("Languages"), choices=languages.choices, required=False, widget=forms.CheckboxSelectMultiple
    )


class LanguagesForm(forms.Form):
    """The languages that a labeler knows."""

    languages = forms.MultipleChoiceField(
        label=gettext_lazy("Languages that you read and write well"),
        choices=languages.choices,
        required=False,
        widget=forms.CheckboxSelectMultiple,
    )


@role_required("admin")
@require_GET
def people_list(request: Request) -> HttpResponse:
    """Applicants, people, invitations."""
    return _people(request, InviteForm())


@role_required("admin")
@require_POST
def invitation_create(request: Request) -> HttpResponse:
    """Invite somebody: the link is sent by e-mail and shown here, once."""
    form = InviteForm(request.POST)
    if not form.is_valid():
        return _people(request, form, status=422)
    try:
        invitation, secret = people.invite(by=request.user, **form.cleaned_data)
    except HeedError as error:
        form.add_error("email", str(error))
        return _people(request, form, status=error.status)
    link = request.build_absolute_uri(reverse("invitation", args=[secret]))
    is_sent = mail.send("people/invitation_mail.txt", _("You are invited to Heed"), invitation.email,
                        {"invitation": invitation, "link": link, "by": request.user})  # fmt: skip
    return render(request, "people/invited.html", {"invitation": invitation, "link": link, "is_sent": is_sent})


@role_required("admin")
@require_POST
def invitation_withdraw(request: Request, pk: int) -> HttpResponse:
    """End an invitation."""
    people.withdraw_invitation(invitation=get_object_or_404(Invitation, pk=pk), by=request.user)
    messages.success(request, _("The link opens nothing any more."))
    return redirect("people")


@role_required("admin")
@require_POST
def applicant_accept(request: Request, pk: int) -> HttpResponse:
    """Make an applicant a labeler, and tell them."""
    user = get_object_or_404(User, pk=pk)
    if not user.has_role(Role.APPLICANT):
        messages.info(request, _("%(who)s is no applicant (any more).") % {"who": user})
        return redirect("people")
    group = request.POST.get("group", "")
    people.accept_applicant(user=user, group=group if group in Group.values else Group.TRAINING, by=request.user)
    link = request.build_absolute_uri(reverse("home"))
    mail.send("people/accepted_mail.txt", _("Welcome to Heed"), user.email, {"person": user, "link": link})
    messages.success(request, _("%(who)s labels now.") % {"who": user})
    return redirect("people")


@role_required("admin")
@require_http_methods(["GET", "POST"])
def person(request: Request, pk: int) -> HttpResponse:
    """One person: roles and group."""
    found = get_object_or_404(User, pk=pk)
    initial = {"roles": sorted(found.role_names), "group": found.group}
    initial |= {"languages": found.languages, "skills": ", ".join(found.skills)}
    form = PersonForm(request.POST or None, initial=initial)
    if request.method == "POST" and form.is_valid():
        try:
            _decide(found, form.cleaned_data, request.user)
        except HeedError as error:
            place = getattr(error, "errors", None) or [{"place": "roles"}]
            form.add_error(place[0]["place"], str(error))
        else:
            messages.success(request, _("Saved."))
            return redirect("person", pk)
    found = _counted(User.objects.filter(pk=pk)).get()
    context = {"person": found, "form": form, "skills": people.known_skills()}
    return render(request, "people/detail.html", context, status=422 if form.errors else 200)


@transaction.atomic
def _decide(found: User, given: dict, by: User) -> None:
    people.set_roles(user=found, roles=set(given["roles"]), group=given["group"], by=by)
    people.set_skills(user=found, skills=given["skills"].split(","), by=by)
    people.set_languages(user=found, codes=given["languages"], by=by)


@role_required(Role.LABELER)
@require_http_methods(["GET", "POST"])
def own_languages(request: Request) -> HttpResponse:
    """A labeler says which languages they know: batches may ask for one."""
    sent = request.POST if request.method == "POST" else None  # with none ticked it is empty, and means so
    form = LanguagesForm(sent, initial={"languages": request.user.languages})
    if sent is not None and form.is_valid():
        people.set_languages(user=request.user, codes=form.cleaned_data["languages"], by=request.user)
        messages.success(request, _("Saved."))
        return redirect("tasks")
    return render(request, "people/languages.html", {"form": form}, status=422 if form.errors else 200)


@role_required("admin")
@require_POST
def person_active(request: Request, pk: int) -> HttpResponse:
    """Let somebody log in, or not any more."""
    found = get_object_or_404(User, pk=pk)
    is_active = request.POST.get("active") == "yes"
    people.set_active(user=found, is_active=is_active, by=request.user)
    said = _("%(who)s may log in.") if is_active else _("%(who)s cannot log in any more.")
    messages.success(request, said % {"who": found})
    return redirect("person", pk)


def _people(request: Request, form: InviteForm, status: int = 200) -> HttpResponse:
    filters = Filters(request.GET)
    applicants = User.objects.filter(is_active=True, roles__role=Role.APPLICANT).order_by("created_at")
    context = {
        "filters": filters,
        "page": paginate(request, _counted(filters.rows()).order_by("-id")),
        "query": query_without(request, "page"),
        "applicants": applicants[:100],
        "invitations": Invitation.objects.select_related("invited_by", "accepted_by").order_by("-id")[:20],
        "form": form,
        "groups": Group.choices,
    }
    return render(request, "people/list.html", context, status=status)


def _counted(rows):
    """With roles, and how much each has labeled."""
    roles = Prefetch("roles", UserRole.objects.order_by("role"))
    return rows.prefetch_related(roles).annotate(submission_count=Count("submissions"))
