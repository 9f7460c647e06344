"""What every list of the console shares: filters from the address, pages of rows."""

from datetime import date, datetime, time

from django import forms
from django.core.paginator import Page, Paginator
from django.db.models import QuerySet
from django.db.models.fields.json import KeyTextTransform, KeyTransform
from django.db.models.functions import Left
from django.http import HttpRequest
from django.utils import timezone

ROWS_PER_PAGE = 50
PREVIEW_CHARS = 160


def paginate(
    request: HttpRequest, rows: QuerySet, per_page: int = ROWS_PER_PAGE, *, full: QuerySet | None = None
) -> Page:
    """The page asked for by `?page=`; the nearest one that exists if there is no such page.

    `full`: the same model with all that a row shows. Long lists then count and sort bare ids, and read whole rows only of
    the page.
    """
    if full is None:
        return Paginator(rows, per_page).get_page(request.GET.get("page"))
    page = Paginator(rows.values_list("pk", flat=True), per_page).get_page(request.GET.get("page"))
    shown = {row.pk: row for row in full.filter(pk__in=list(page.object_list))}
    page.object_list = [shown[pk] for pk in page.object_list if pk in shown]
    return page


def newest_first(request: HttpRequest, rows: QuerySet, per_page: int) -> tuple[list, int | None]:
    """Rows by falling number behind `?before=`, and what the next page begins behind: None on the last. However far back, as cheap."""
    before = request.GET.get("before", "")
    if before.isascii() and before.isdigit() and len(before) < 19:
        rows = rows.filter(pk__lt=int(before))
    page = list(rows.order_by("-pk")[: per_page + 1])
    shown = page[:per_page]
    return shown, shown[-1].pk if len(page) > per_page else None


def day_input() -> forms.DateInput:
    """A day, with the browser's calendar."""
    return forms.DateInput(attrs={"type": "date"}, format="%Y-%m-%d")


def moment_on(day: date, clock: time) -> datetime:
    """A moment of a day (time.min: its first, time.max: its last) in the installation's time zone."""
    return timezone.make_aware(datetime.combine(day, clock))


def query_without(request: HttpRequest, *names: str) -> str:
    """The address's query string without these parameters, to build links with."""
    params = request.GET.copy()
    for name in names:
        params.pop(name, None)
    return params.urlencode()


def prompt_preview(path: str = "") -> Left:
    """The beginning of a prompt's last message, cut in the database so that long prompts are not read. `path`: "task__prompt__"."""
    return Left(KeyTextTransform("content", KeyTransform("-1", f"{path}messages")), PREVIEW_CHARS)


def set_choices(form: forms.Form, name: str, choices: list) -> None:
    """What a form's field offers, where that depends on the rows. Raises TypeError for a field without choices."""
    field = form.fields[name]
    if not isinstance(field, forms.ChoiceField):
        raise TypeError(f"{name} has no choices")
    field.choices = choices


class FilterForm(forms.Form):
    """A form read from the address: fields that make no sense are dropped, with their error shown."""

    def __init__(self, data):
        super().__init__(data, auto_id="filter_%s")
        self.is_valid()

    @property
    def chosen(self) -> dict:
        """The fields that were filled in rightly."""
        return {name: value for name, value in self.cleaned_data.items() if value not in (None, "")}
