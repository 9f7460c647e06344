"""Forms that are not tied to one page."""

from django import forms
from django.utils.translation import gettext_lazy as _


class SignUpForm(forms.Form):
    """What signing up asks besides e-mail and password. Without an invitation it is an application."""

    name = forms.CharField(label=_("Name"), max_length=150, widget=forms.TextInput(attrs={"autocomplete": "name"}))
    statement = forms.CharField(
        label=_("Why you would like to label (optional)"),
        required=False,
        max_length=5000,
        widget=forms.Textarea(attrs={"rows": 4}),
    )

    def signup(self, request, user) -> None:
        """Called by allauth once the account exists; roles come from the adapter."""
        user.name = self.cleaned_data["name"]
        user.statement = self.cleaned_data["statement"]
        user.save(update_fields=["name", "statement"])
