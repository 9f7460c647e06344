"""Every address of the web half."""

from django.contrib import admin
from django.urls import include, path

from labeling.views import home

urlpatterns = [
    path("", home.home, name="home"),
    path("healthz", home.healthz, name="healthz"),
    path("invitation/<str:secret>/", home.invitation, name="invitation"),
    path("accounts/", include("allauth.urls")),
    path("admin/", admin.site.urls),
]
