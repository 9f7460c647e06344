"""A run's log as it grows, sent to TensorBoard or MLflow as well, through accelerate's trackers.

The log itself is a list of rows and needs neither: it becomes training_log.jsonl and the curves of report.html.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from training import processes
from training.errors import StageError
from training.report import STEP_NAMES

Track = Literal["none", "tensorboard", "mlflow"]


class Log(list[dict[str, Any]]):
    """Rows of a run. What is appended is also sent to the tracker, if there is one."""

    def __init__(self, rows: Sequence[dict[str, Any]], tracker: Any = None):
        super().__init__(rows)
        self._tracker = tracker

    def append(self, row: dict[str, Any]) -> None:
        """Keep the row; send its finite numbers, under its step."""
        super().append(row)
        if self._tracker is not None:
            self._tracker.log(_numbers(row), step=next((row[name] for name in STEP_NAMES if name in row), len(self)))


def open_log(rows: Sequence[dict[str, Any]], track: Track, out: str | Path, config: Mapping[str, Any]) -> Log:
    """The log of the run that makes `out`, going on after `rows`. Trackers write beside it, in OUT.tracking/.

    MLflow writes where MLFLOW_TRACKING_URI says, else there too. Raises StageError when the tracker is not installed.
    """
    if track == "none" or not processes.is_main():
        return Log(rows)
    from accelerate.tracking import MLflowTracker, TensorBoardTracker
    from accelerate.utils import is_mlflow_available, is_tensorboard_available

    out = Path(out)
    folder = out.with_name(out.name + ".tracking")
    available = is_tensorboard_available() if track == "tensorboard" else is_mlflow_available()
    if not available:
        raise StageError(f"track {track}: not installed; pip install {track}, or set track to none")
    if track == "tensorboard":
        # After a kill, steps past the checkpoint are done again: what was drawn of them goes.
        tracker: Any = TensorBoardTracker(out.name, folder, purge_step=_next_step(rows))
        tracker.start()
    else:
        _point_mlflow_at(folder)
        tracker = MLflowTracker("heed", logging_dir=folder.resolve().as_uri(), run_name=out.name)
        tracker.start()
    tracker.store_init_configuration(
        {name: value if _is_plain(value) else str(value) for name, value in config.items()}
    )
    return Log(rows, tracker)


def _next_step(rows: Sequence[Mapping[str, Any]]) -> int:
    steps = [row[name] for row in rows[-1:] for name in STEP_NAMES if name in row]
    return int(steps[0]) + 1 if steps else 0


def _point_mlflow_at(folder: Path) -> None:
    import os

    import mlflow

    if "MLFLOW_TRACKING_URI" not in os.environ:
        folder.mkdir(parents=True, exist_ok=True)
        mlflow.set_tracking_uri(f"sqlite:///{folder.resolve()}/mlflow.db")  # its plain folders are no longer kept up


def _is_plain(value: object) -> bool:
    return isinstance(value, bool | str | int | float)


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    numbers = {name: value for name, value in row.items() if isinstance(value, int | float) and name not in STEP_NAMES}
    return {name: float(value) for name, value in numbers.items() if math.isfinite(value)}
