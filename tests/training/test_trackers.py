"""The log of a run, and what TensorBoard shows of it; after a kill, steps that are done again replace what was drawn."""

import pytest
from accelerate.utils import is_mlflow_available

from training.errors import StageError
from training.trackers import Log, open_log


def drawn(folder) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in events.Scalars("loss")]


def test_tensorboard_draws_what_the_log_holds(tmp_path):
    log = open_log([], "tensorboard", tmp_path / "sft-1", {"epochs": 1, "text": None, "tags": ["a"]})
    for step in range(4):
        log.append({"step": step, "loss": step / 4, "note": "words are not drawn", "bad": float("nan")})
    again = open_log(list(log)[:2], "tensorboard", tmp_path / "sft-1", {"epochs": 1})
    again.append({"step": 2, "loss": 7.0})
    assert drawn(tmp_path / "sft-1.tracking" / "sft-1") == [(0, 0.0), (1, 0.25), (2, 7.0)]
    assert again == [*log[:2], {"step": 2, "loss": 7.0}]


def test_without_a_tracker_nothing_is_written(tmp_path):
    log = open_log([{"step": 0}], "none", tmp_path / "sft-1", {})
    log.append({"step": 1})
    assert isinstance(log, Log) and log == [{"step": 0}, {"step": 1}] and not list(tmp_path.iterdir())


@pytest.mark.skipif(is_mlflow_available(), reason="only without MLflow can its absence be told")
def test_a_tracker_that_is_not_installed_is_named(tmp_path):
    with pytest.raises(StageError, match="pip install mlflow"):
        open_log([], "mlflow", tmp_path / "sft-1", {})
