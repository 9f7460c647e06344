"""What every test may use: a throwaway database, people of every role, their clients, an environment for processes.

The database is an embedded PostgreSQL, started once per run and only waited for by tests that need one; with DATABASE_URL set,
the same tests run there instead. pytest-xdist's workers share the server and have a database each: the migrations run once, in
the server's own database, and theirs are copies of it (TEST TEMPLATE in tests/settings.py).

Files whose tests share something dear (a demo, processes of torchrun, trained models) stay on one worker, longest first; then
come all tests that use the database, one by one to whoever is free, so that no worker is left with a long file at the end.
"""

import contextlib
import fcntl
import importlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import pytest
from django.conf import settings
from django.core.management import call_command
from django.db import connection
from django.test import Client

from labeling import postgres

ROOT = Path(__file__).resolve().parent.parent
PASSWORD = "correct horse battery staple"
SERVER = pytest.StashKey[subprocess.Popen]()
TOGETHER = ("tests/loop/", "tests/labeling/test_demo.py", "tests/labeling/test_postgres.py", "tests/training/")
LONGEST = (
    "tests/loop/test_run.py",
    "tests/labeling/test_demo.py",
    "tests/training/test_stages.py",
    "tests/training/test_parallel.py",
    "tests/training/test_serve.py",
    "tests/labeling/test_postgres.py",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, then what needs no database; pytest-django has put real transactions last."""

    def turn(item: pytest.Item) -> int:
        path = item.nodeid.partition("::")[0]
        if path in LONGEST:
            return LONGEST.index(path)
        uses = {"db", "transactional_db", "live_server"} & set(getattr(item, "fixturenames", ()))
        return len(LONGEST) + bool(uses or item.get_closest_marker("django_db"))

    items.sort(key=turn)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """Files below TOGETHER to one worker each, other tests to any. (xdist's own groups are lost on pytest 9's node ids.)"""
    from xdist.scheduler import LoadScopeScheduling

    class FilesTogether(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            return path if path.startswith(TOGETHER) else nodeid

    config.option.loadscopereorder = False  # our order stays
    return FilesTogether(config, log)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Start the database server while tests are being collected. Once: in the process that starts xdist's workers."""
    config = session.config
    if not settings.IS_EMBEDDED or hasattr(config, "workerinput") or config.option.collectonly:
        return
    with (settings.TEST_BASE / "postgres.log").open("w") as log:
        config.stash[SERVER] = subprocess.Popen(
            [sys.executable, "manage.py", "postgres", "--throwaway", "--base-dir", str(settings.TEST_BASE)],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            preexec_fn=postgres.end_with_parent(signal.SIGTERM),
        )


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the server and remove everything that the run wrote."""
    if hasattr(config, "workerinput"):
        return
    if server := config.stash.get(SERVER, None):
        server.terminate()
        server.wait(60)
    shutil.rmtree(postgres.runtime_folder(settings.TEST_BASE), ignore_errors=True)
    # The cluster may lie elsewhere, behind a link.
    shutil.rmtree(os.path.realpath(settings.TEST_BASE / "var" / "postgres"), ignore_errors=True)
    shutil.rmtree(settings.TEST_BASE, ignore_errors=True)


@pytest.fixture(scope="session")
def database_server() -> None:
    """Return once the database server answers."""
    if not settings.IS_EMBEDDED:
        return
    try:
        url = postgres.embedded_url(settings.TEST_BASE)
        postgres.wait_until_ready(url, timeout_seconds=60)
    except postgres.PostgresError as error:
        with contextlib.suppress(FileNotFoundError):
            error.add_note((settings.TEST_BASE / "postgres.log").read_text())
        raise


@pytest.fixture(scope="session")
def database_template(database_server: None, django_db_blocker) -> None:
    """Return once the database that the tests' own are copied from is migrated; the first worker that comes here does it."""
    if not settings.IS_EMBEDDED:
        return
    with (settings.TEST_BASE / "migrated").open("a+") as mark, django_db_blocker.unblock():
        fcntl.flock(mark, fcntl.LOCK_EX)
        if mark.seek(0, os.SEEK_END) == 0:
            call_command("migrate", verbosity=0)
            connection.close()  # a database that someone is connected to cannot be copied
            mark.write("once for all workers")


@pytest.fixture(scope="session")
def django_db_modify_db_settings(database_template: None, django_db_modify_db_settings: None) -> None:
    """pytest-django makes the test database after this: wait for what it is copied from first."""


@pytest.fixture(autouse=True)
def first_label_schema(request: pytest.FixtureRequest) -> None:
    """The label schema that a migration made: a test with real transactions ends by emptying every table."""
    mark = request.node.get_closest_marker("django_db")
    is_real = "transactional_db" in request.fixturenames or bool(mark and mark.kwargs.get("transaction"))
    if not (is_real or mark or "db" in request.fixturenames):
        return
    from django.apps import apps

    request.getfixturevalue("transactional_db" if is_real else "db")
    if not apps.get_model("labeling.LabelSchema").objects.exists():
        importlib.import_module("labeling.migrations.0002_invariants").first_label_schema(apps, None)
    if is_real:
        empty_job_queue()


def empty_job_queue() -> None:
    """Jobs of an earlier test with real transactions: procrastinate's tables are not Django's to empty."""
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE procrastinate_jobs, procrastinate_workers CASCADE")


@pytest.fixture(autouse=True)
def no_second_reviews_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verdicts are sampled where a test sets a rate of 100 %, and else never: what a reviewer is shown depends on it."""
    if "labeling.actions.second_reviews" in sys.modules:
        monkeypatch.setattr("labeling.actions.second_reviews.random", SimpleNamespace(random=lambda: 0.999))


@pytest.fixture
def environment() -> dict[str, str]:
    """The environment for a process that must see this test's database (with committed rows: transactional_db)."""
    database = settings.DATABASES["default"]
    url = postgres.embedded_url(settings.TEST_BASE) if settings.IS_EMBEDDED else os.environ["DATABASE_URL"]
    head, _, query = url.partition("?")
    url = f"{head.rpartition('/')[0]}/{quote(database['NAME'])}" + (f"?{query}" if query else "")
    return os.environ | {"DATABASE_URL": url, "DJANGO_SETTINGS_MODULE": "tests.settings", "PYTHONPATH": str(ROOT)}


@pytest.fixture
def make_user(db) -> Callable:
    """A factory of people: make_user("a@example.org", "labeler", "reviewer", group="held_out"). Their password is PASSWORD."""
    from labeling.models import User

    def make(email: str, *roles: str, **fields) -> User:
        user = User.objects.create_user(email, PASSWORD, **fields)
        for role in roles:
            user.grant(role)
        return user

    return make


@pytest.fixture
def applicant(make_user):
    """Has applied and is nothing else yet."""
    return make_user("applicant@example.org", "applicant", name="Ada Applicant")


@pytest.fixture
def labeler(make_user):
    """A labeler whose labels are for training."""
    return make_user("labeler@example.org", "labeler", name="Lena Labeler")


@pytest.fixture
def labeler2(make_user):
    """Another one."""
    return make_user("labeler2@example.org", "labeler", name="Luis Labeler")


@pytest.fixture
def heldout_labeler(make_user):
    """A labeler whose labels are never trained on."""
    return make_user("heldout@example.org", "labeler", name="Hedda Held-Out", group="held_out")


@pytest.fixture
def reviewer(make_user):
    """Reviews submissions."""
    return make_user("reviewer@example.org", "reviewer", name="Rui Reviewer")


@pytest.fixture
def researcher(make_user):
    """Imports, orders batches, builds exports."""
    return make_user("researcher@example.org", "researcher", name="Rosa Researcher")


@pytest.fixture
def admin_user(make_user):
    """An admin; pytest-django's admin_client is theirs."""
    return make_user("admin@example.org", "admin", name="Amir Admin")


@pytest.fixture
def client_for() -> Callable:
    """A factory of logged-in clients: client_for(labeler). Each call is a browser of its own."""

    def make(user) -> Client:
        client = Client()
        client.force_login(user)
        return client

    return make


@pytest.fixture
def labeler_client(client_for, labeler) -> Client:
    """`labeler`'s browser."""
    return client_for(labeler)


@pytest.fixture
def labeler2_client(client_for, labeler2) -> Client:
    """`labeler2`'s browser."""
    return client_for(labeler2)


@pytest.fixture
def heldout_labeler_client(client_for, heldout_labeler) -> Client:
    """`heldout_labeler`'s browser."""
    return client_for(heldout_labeler)


@pytest.fixture
def applicant_client(client_for, applicant) -> Client:
    """`applicant`'s browser."""
    return client_for(applicant)


@pytest.fixture
def reviewer_client(client_for, reviewer) -> Client:
    """`reviewer`'s browser."""
    return client_for(reviewer)


@pytest.fixture
def researcher_client(client_for, researcher) -> Client:
    """`researcher`'s browser."""
    return client_for(researcher)
