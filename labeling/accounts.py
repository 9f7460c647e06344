"""How Heed uses django-allauth: who may sign up, and what they become."""

from allauth.account.adapter import DefaultAccountAdapter
from allauth.socialaccount.adapter import DefaultSocialAccountAdapter
from django.conf import settings
from django.db import transaction

from labeling.actions import people


class AccountAdapter(DefaultAccountAdapter):
    """Sign-up by invitation or application. The invitation's secret waits in the session, put there by its link."""

    def is_open_for_signup(self, request) -> bool:
        return settings.SIGN_UP == "application" or people.open_invitation(request) is not None

    def save_user(self, request, user, form, commit=True):
        with transaction.atomic():
            user = super().save_user(request, user, form, commit)
            if commit:
                people.admit(user=user, request=request)
        return user


class SocialAccountAdapter(DefaultSocialAccountAdapter):
    """The same rules for people who come by single sign-on."""

    def is_open_for_signup(self, request, sociallogin) -> bool:
        return settings.SIGN_UP == "application" or people.open_invitation(request) is not None

    def save_user(self, request, sociallogin, form=None):
        with transaction.atomic():
            user = super().save_user(request, sociallogin, form)
            people.admit(user=user, request=request)
        return user
