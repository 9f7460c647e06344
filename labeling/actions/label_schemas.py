"""Label schemas: new versions of the rating form, checked. Versions are never changed; a change is a new version."""

import re

from django.db import transaction
from django.utils.translation import gettext as _

from labeling import locks
from labeling.answers import problem
from labeling.errors import Invalid, refuse
from labeling.models import LabelSchema, User

LOWEST, HIGHEST = 1, 7  # what an export's contract lets a rating be; each number has its key
MAX_FLAGS = 30
LIMITS = {"label": 200, "help": 500}
ANCHOR_MAX_CHARS = 60
LISTS = ("response_flags", "prompt_flags")
NAME = re.compile(r"[a-z][a-z0-9_]{0,39}\Z")


@transaction.atomic
def create_schema(*, content: dict, by: User | None) -> LabelSchema:
    """The next version of the form. What the newest version says already makes none: that version is the answer.

    `content` as in LabelSchema. Raises Invalid naming every place that is wrong.
    """
    checked = _checked(content)
    locks.hold("label schema")  # two at once get two numbers
    newest = LabelSchema.objects.first()
    if newest is not None and _checked(newest.content) == checked:
        return newest
    return LabelSchema.objects.create(version=newest.version + 1 if newest else 1, content=checked, created_by=by)


def _checked(content: object) -> dict:
    """The content in canonical form: what is empty is left out, so that equal forms are equal."""
    if not isinstance(content, dict) or (unknown := set(content) - {"quality", *LISTS}):
        what = ", ".join(sorted(map(str, unknown))) if isinstance(content, dict) else ""
        raise Invalid(_("A form has quality, response_flags and prompt_flags, and nothing else.") + f" {what}".rstrip())
    problems: list[dict] = []
    checked: dict = {"quality": _scale(content.get("quality"), problems)}
    checked |= {name: _flags(content.get(name, []), name, problems) for name in LISTS}
    refuse(problems)
    return checked


def _scale(given: object, problems: list[dict]) -> dict:
    place = _("Rating scale")
    given = given if isinstance(given, dict) else {}
    low, high, anchors = given.get("min"), given.get("max"), given.get("anchors") or {}
    numbers = [n for n in (low, high) if isinstance(n, int) and not isinstance(n, bool)]
    if len(numbers) < 2 or not LOWEST <= numbers[0] < numbers[1] <= HIGHEST:
        message = _("must go from a lower to a higher whole number, both from %(low)d to %(high)d")
        problems.append(problem(place, message % {"low": LOWEST, "high": HIGHEST}, "id_scale-min"))
        return {}
    scale: dict = {"min": low, "max": high}
    texts = {str(value): str(text).strip() for value, text in anchors.items()} if isinstance(anchors, dict) else {}
    for value, text in texts.items():
        if text and value not in map(str, range(numbers[0], numbers[1] + 1)):
            problems.append(
                problem(place, _("has a text for %s, which is not on it") % value, f"id_scale-anchor_{value}")
            )
        if len(text) > ANCHOR_MAX_CHARS:
            message = _("the text for %(value)s has more than %(n)d characters") % {
                "value": value,
                "n": ANCHOR_MAX_CHARS,
            }
            problems.append(problem(place, message, f"id_scale-anchor_{value}"))
    if said := {value: text for value, text in sorted(texts.items()) if text}:
        scale["anchors"] = said
    return scale


def _flags(given: object, name: str, problems: list[dict]) -> list[dict]:
    title = _("Response flag") if name == "response_flags" else _("Prompt flag")
    if not isinstance(given, list) or len(given) > MAX_FLAGS:
        problems.append(problem(title, _("must be a list of at most %d") % MAX_FLAGS))
        return []
    flags, seen = [], set()
    for number, flag in enumerate(given):
        place = f"{title} {number + 1}"
        flag = flag if isinstance(flag, dict) else {}
        texts = {key: str(flag.get(key) or "").strip() for key in ("name", *LIMITS)}
        field = f"id_{name}-{flag.get('row', number)}-"
        if not NAME.match(texts["name"]):
            message = _("needs a name of lower-case letters, digits and underscores, at most 40")
            problems.append(problem(place, message, field + "name"))
        elif texts["name"] in seen:
            problems.append(problem(place, _("has the name of another: %s") % texts["name"], field + "name"))
        if not texts["label"]:
            problems.append(problem(place, _("needs a label: the words that people read"), field + "label"))
        for key, limit in LIMITS.items():
            if len(texts[key]) > limit:
                problems.append(problem(place, _("is too long: at most %d characters") % limit, field + key))
        seen.add(texts["name"])
        made: dict = {"name": texts["name"], "label": texts["label"]}
        if texts["help"]:
            made["help"] = texts["help"]
        if flag.get("required") is True:
            made["required"] = True
        flags.append(made)
    return flags
