"""Background jobs by a real worker: what a killed worker left is run again, what ran out goes back."""

import subprocess
import sys
from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.utils import timezone
from procrastinate.contrib.django import app
from procrastinate.contrib.django.models import ProcrastinateJob

from labeling import jobs
from labeling.actions import exports, nightly
from labeling.models import Slot
from tests.conftest import ROOT
from tests.labeling.rows import make_demonstration_batch, submit

pytestmark = pytest.mark.django_db(transaction=True)


def run_worker(environment: dict[str, str]) -> None:
    command = [sys.executable, "manage.py", "procrastinate", "worker", "--one-shot"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=60)


def let_its_worker_die(task_name: str) -> None:
    """As kill -9 leaves it: the job `doing`, its worker's heartbeat long ago."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO procrastinate_workers (last_heartbeat) VALUES (now() - interval '5 minutes') RETURNING id"
        )
        cursor.execute(
            "UPDATE procrastinate_jobs SET status = 'doing', worker_id = %s WHERE task_name = %s",
            [cursor.fetchone()[0], task_name],
        )


def test_a_dead_workers_job_is_run_again_and_leases_go_back(labeler, labeler2, researcher, environment):
    tasks = make_demonstration_batch(prompts=2).tasks.all()
    submit(tasks[0], labeler)
    slot = tasks[1].slots.get()
    slot.lease(labeler2, timezone.now() - timedelta(hours=2))
    slot.save()
    export = exports.request(query={}, by=researcher)
    let_its_worker_die("build_export")
    # No worker takes a job that is `doing`. Not shown by running one: at the turn of a minute it would look for lost jobs.
    assert list(ProcrastinateJob.objects.values_list("task_name", "status")) == [("build_export", "doing")]

    for task in (jobs.give_back_jobs, jobs.return_leases):
        if not ProcrastinateJob.objects.filter(task_name=task.name, status="todo").exists():
            task.defer(timestamp=0)
    run_worker(environment)
    export.refresh_from_db()
    assert (export.status, export.counts["demonstrations"]) == ("ready", 1)
    slot.refresh_from_db()
    assert slot.status == Slot.Status.OPEN
    assert not ProcrastinateJob.objects.filter(status__in=["doing", "failed"]).exists()


def test_a_job_and_its_row_are_there_together_or_not_at_all(researcher):
    class Halt(Exception):
        pass

    def order_and_fail():
        with transaction.atomic():
            exports.request(query={}, by=researcher)
            raise Halt

    with pytest.raises(Halt):
        order_and_fail()
    assert not ProcrastinateJob.objects.exists()
    exports.request(query={}, by=researcher)
    assert ProcrastinateJob.objects.count() == 1


def test_the_nightly_command_is_started_only_where_it_is_configured_and_outlives_its_starter(settings, tmp_path):
    assert not [task for (name, _), task in app.periodic_registry.periodic_tasks.items() if name == "start_nightly"]
    settings.VAR_DIR, settings.NIGHTLY_CONFIG = tmp_path, "night.toml"
    process = nightly.start((sys.executable, "-c", "import os, sys; print(sys.argv[1:], os.getsid(0) == os.getpid())"))
    assert process.wait(30) == 0
    assert (tmp_path / "log" / "nightly.log").read_text() == "['--config', 'night.toml'] True\n"


def test_the_nightly_command_goes_by_its_cron_line_which_is_checked_at_start(environment):
    code = "import django; django.setup(); from labeling.jobs import app\n"
    code += "print([task.cron for (name, _), task in app.periodic_registry.periodic_tasks.items() if name == 'start_nightly'])"
    for line in ("5 2 * * *", "61 25 * * *", "0 0 31 2 *"):
        set_so = environment | {"NIGHTLY_CONFIG": "night.toml", "NIGHTLY_CRON": line}
        command = [sys.executable, "-c", code]
        result = subprocess.run(command, cwd=ROOT, env=set_so, capture_output=True, text=True, timeout=60)
        if line == "5 2 * * *":
            assert result.stdout == "['5 2 * * *']\n", result.stderr
        else:
            assert f"ImproperlyConfigured: NIGHTLY_CRON={line}: expected minute, hour" in result.stderr
