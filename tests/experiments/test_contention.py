"""The experiment with a dozen labelers and their processes killed, small enough for every run of the suite."""

import pytest

from tests import builders
from tests.experiments import contention


@pytest.mark.django_db(transaction=True)
def test_nothing_is_lost_doubled_or_stuck_when_processes_die(tmp_path):
    builders.label_schema()
    happened = contention.run(
        tmp_path, slots=120, steps=90, labelers=12, processes=3, kill_seconds=0.4, limit_seconds=8, seed=1
    )
    assert happened["submissions"] >= happened["acknowledged"] > 20
    assert happened["killed"] > 0
