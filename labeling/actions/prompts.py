"""Prompts' use cases: which there are, and giving one to prompts that came without."""

import uuid
from collections.abc import Mapping

from django.core.cache import cache
from django.db import transaction
from django.db.models import Max
from django.utils.translation import gettext as _

from labeling.errors import refuse
from labeling.models import Prompt, User


def use_cases() -> list[str]:
    """The use cases of all prompts. Remembered until there is a newer prompt: finding them reads the whole table."""
    found = Prompt.objects.exclude(use_case="").order_by("use_case").values_list("use_case", flat=True).distinct()
    return cache.get_or_set(_known(), lambda: list(found), timeout=24 * 3600) or []


def _known() -> str:
    return f"use_cases_up_to_{Prompt.objects.aggregate(newest=Max('id'))['newest']}"


@transaction.atomic
def give_use_cases(*, use_cases: Mapping[uuid.UUID, str], by: User | None) -> int:
    """Give these prompts, by UUID, their use cases, all of them or none; returns how many had none before.

    A use case is given once: people and exports go by it. Raises Invalid naming each prompt that is not there or has another.
    """
    found = {p.uuid: p for p in Prompt.objects.select_for_update().filter(uuid__in=use_cases).order_by("pk")}
    problems = []
    for key, use_case in use_cases.items():
        if key not in found:
            problems.append({"place": str(key), "message": _("there is no such prompt")})
        elif found[key].use_case not in ("", use_case):
            said = _("its use case is %(there)s already") % {"there": found[key].use_case}
            problems.append({"place": str(key), "message": said})
    refuse(problems, between=": ")
    given = [prompt for prompt in found.values() if not prompt.use_case]
    for prompt in given:
        prompt.use_case = use_cases[prompt.uuid]
    Prompt.objects.bulk_update(given, ["use_case"], batch_size=1000)
    transaction.on_commit(lambda: cache.delete(_known()))
    return len(given)
