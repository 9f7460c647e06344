"""What every list of the console shares: filters from the address, pages of rows."""

from django import forms
from django.core.paginator import Page, Paginator
from django.db.models import QuerySet
from django.db.models.fields.json import KeyTextTransform, KeyTransform
from django.db.models.functions import Left
from django.http import HttpRequest

ROWS_PER_PAGE = 50
PREVIEW_CHARS = 160


def paginate(request: HttpRequest, rows: QuerySet, per_page: int = ROWS_PER_PAGE) -> Page:
    """The page asked for by `?page=`; the nearest one that exists if there is no such page."""
    return Paginator(rows, per_page).get_page(request.GET.get("page"))


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
