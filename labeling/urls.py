"""Every address of the web half."""

from django.contrib import admin
from django.urls import include, path

from labeling.views import home, submissions, tasks

urlpatterns = [
    path("", home.home, name="home"),
    path("healthz", home.healthz, name="healthz"),
    path("invitation/<str:secret>/", home.invitation, name="invitation"),
    path("tasks/", tasks.queue, name="tasks"),
    path("tasks/next", tasks.claim, name="task_next"),
    path("tasks/<uuid:task_uuid>/", tasks.task, name="task"),
    path("tasks/<uuid:task_uuid>/draft", tasks.save_draft, name="task_draft"),
    path("tasks/<uuid:task_uuid>/renew", tasks.renew, name="task_renew"),
    path("tasks/<uuid:task_uuid>/submit", tasks.submit, name="task_submit"),
    path("tasks/<uuid:task_uuid>/skip", tasks.skip, name="task_skip"),
    path("tasks/<uuid:task_uuid>/release", tasks.release, name="task_release"),
    path("history/", submissions.history, name="history"),
    path("history/<uuid:submission_uuid>/", submissions.submission, name="submission"),
    path("history/<uuid:submission_uuid>/reopen", submissions.reopen, name="submission_reopen"),
    path("history/<uuid:submission_uuid>/discard", submissions.discard_correction, name="submission_discard"),
    path("accounts/", include("allauth.urls")),
    path("admin/", admin.site.urls),
]
