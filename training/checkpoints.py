"""Checkpoints: written atomically, verified on load, pruned to the newest two; a resumed run equals one never killed.

A stage keeps its unfinished state beside its output, in `OUT.run/`: `checkpoint-00000120.pt` with the SHA-256 of its bytes
in `checkpoint-00000120.pt.sha256`. The folder goes when the model is published.

Of several processes the main one reads and writes, and tells the others. A file holds whole tensors however they were sharded,
so a run goes on under any number of processes.
"""

from __future__ import annotations

import contextlib
import copy
import fcntl
import hashlib
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from training import parallel, processes
from training.contract import ContractError, ExportRef, ParentRef, hash_file, read_model_manifest, write_atomically
from training.errors import StageError
from training.folders import sync_folder

KEEP = 2
"""Checkpoints kept: the newest, and the one before it in case the newest is damaged."""

FREE_FIELDS = {"out", "device", "threads", "checkpoint_every", "overwrite", "track", "dry_run", "parallel"}
"""Config fields that decide how a run is carried out, not what comes of it; a resumed run may change them."""


class CheckpointError(StageError):
    """A checkpoint that cannot be used, or an output that belongs to another run."""


class RunState:
    """The unfinished state of one stage run: where its checkpoints are and which run they belong to."""

    def __init__(
        self,
        out: str | Path,
        stage: str,
        config: dict,
        parents: dict[str, ParentRef],
        export: ExportRef | None,
        text: str | None = None,
    ):
        """`text`: a file of text that is trained on, if there is one; its contents belong to the run as an export's do."""
        self.out = Path(out)
        self.folder = self.out.with_name(self.out.name + ".run")
        kept = {name: value for name, value in config.items() if name not in FREE_FIELDS}
        lineage = {role: ref.manifest_sha256 for role, ref in sorted(parents.items())}
        self.text_facts = {"text_sha256": hash_file(text)} if text else {}
        identity = [stage, kept, lineage, export.data_sha256 if export else None, *self.text_facts.values()]
        self.fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self.config = kept
        self.parents = parents
        self.export = export

    def is_published(self, overwrite: bool = False) -> bool:
        """True when this very run is already done. Raises CheckpointError when the output is of another run.

        With `overwrite` another run's output is removed instead; what holds no model manifest is left alone all the same.
        """
        return processes.from_main(lambda: self._is_published(overwrite))

    def _is_published(self, overwrite: bool) -> bool:
        if not self.out.exists():
            return False
        try:
            manifest = read_model_manifest(self.out)
            same = {k: v for k, v in manifest.config.items() if k not in FREE_FIELDS} == self.config
            same &= manifest.parents == self.parents and manifest.export == self.export
            if same and self.text_facts.items() <= manifest.metrics.items() and not overwrite:
                return True
        except ContractError as error:
            if not overwrite:
                raise CheckpointError(f"{self.out} exists and is no intact model folder: {error}") from None
        if not overwrite:
            raise CheckpointError(
                f"{self.out} exists with other settings or parents, or of other data; choose another out, or set overwrite"
            )
        if not (self.out / "manifest.json").is_file():
            raise CheckpointError(f"{self.out} is no model folder, so overwrite leaves it alone; choose another out")
        shutil.rmtree(self.out)
        return False

    def load(self) -> dict[str, Any] | None:
        """The newest checkpoint that is whole, or None. A damaged one is named on stderr and the one before it used.

        Raises CheckpointError when another process is at this run, or when the checkpoints belong to a run with other
        settings, parents or data.
        """
        return processes.from_main(self._load)

    def _load(self) -> dict[str, Any] | None:
        self._lock()
        for path in sorted(self.folder.glob("checkpoint-*.pt"), reverse=True):
            digest = path.with_name(path.name + ".sha256")
            if not digest.exists() or digest.read_text().strip() != hash_file(path):
                print(f"{path}: does not match its checksum; trying the checkpoint before it", file=sys.stderr)
                continue
            saved = torch.load(path, map_location="cpu", weights_only=True)
            if saved["fingerprint"] != self.fingerprint:
                raise CheckpointError(
                    f"{path} belongs to a run with other settings, parents or data; "
                    f"remove {self.folder} to start over, or choose another out"
                )
            return saved["state"]
        return None

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the state after `step` steps: whole under another name, its checksum, then under its own; then prune.

        Kept are this one and the one before it. What claims to be newer than this did not match its checksum when the run
        was resumed, so it goes too.
        """
        if not processes.is_main():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"checkpoint-{step:08d}.pt"
        writing = self.folder / "writing"  # one name, so that a killed run leaves at most one
        with writing.open("wb") as file:
            try:
                torch.save({"fingerprint": self.fingerprint, "state": state}, file)
            except RuntimeError as error:  # torch speaks of positions in its archive; why is in what it met
                if not isinstance(error.__context__, OSError):
                    raise
                why = error.__context__.strerror
                raise CheckpointError(f"{path}: {why}; the checkpoint before it, if any, still stands") from error
            file.flush()
            os.fsync(file.fileno())
        write_atomically(path.with_name(path.name + ".sha256"), hash_file(writing).encode() + b"\n")
        writing.replace(path)
        sync_folder(self.folder)
        older = [other for other in sorted(self.folder.glob("checkpoint-*.pt")) if other.name < path.name]
        for other in set(self.folder.glob("checkpoint-*.pt")) - {path, *older[1 - KEEP :]}:
            other.unlink()
            other.with_name(other.name + ".sha256").unlink(missing_ok=True)

    def _lock(self) -> None:
        """Hold this run until the process ends, however it ends."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._held = open(self.folder / "lock", "w")  # noqa: SIM115 held until the process ends
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(f"{self.folder}: another process is working on this run") from None

    def part(self, name: str) -> RunState:
        """A run within this one, such as a fold: checkpoints of its own under this one's folder, and gone with it."""
        part = copy.copy(self)
        part.out = self.folder / name
        part.folder = self.folder / f"{name}.run"
        part.fingerprint = hashlib.sha256(f"{self.fingerprint} {name}".encode()).hexdigest()
        return part

    def read_result(self) -> Any:
        """What this part came to, or None while it is unfinished."""
        return processes.from_main(self._read_result)

    def _read_result(self) -> Any:
        path, digest = self.folder / "result.json", self.folder / "result.json.sha256"
        if not path.exists():
            return None
        if not digest.exists() or digest.read_text().strip() != hash_file(path):
            print(f"{path}: does not match its checksum; doing it again", file=sys.stderr)
            return None
        saved = json.loads(path.read_bytes())
        return saved["result"] if saved["fingerprint"] == self.fingerprint else None

    def write_result(self, result: Any) -> None:
        """Keep what this part came to; its checkpoints have done their work and go."""
        if not processes.is_main():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"fingerprint": self.fingerprint, "result": result})
        path = self.folder / "result.json"
        path.unlink(missing_ok=True)
        write_atomically(
            path.with_name("result.json.sha256"), hashlib.sha256(content.encode()).hexdigest().encode() + b"\n"
        )
        write_atomically(path, content.encode())
        for checkpoint in self.folder.glob("checkpoint-*"):
            checkpoint.unlink()

    def clear(self) -> None:
        """Remove the checkpoints: the model is published."""
        if processes.is_main():
            shutil.rmtree(self.folder, ignore_errors=True)


def capture(step: int, log: list[dict], **parts: Any) -> dict[str, Any]:
    """The state after `step` steps: each part's state_dict, the log so far, and the random generators.

    Every process must ask for it; only the main one's is whole.
    """
    return {
        "step": step,
        "log": list(log),
        "rng": rng_state(),
        **{name: parallel.gathered(part.state_dict()) for name, part in parts.items()},
    }


def restore(saved: dict[str, Any] | None, **parts: Any) -> tuple[int, list[dict]]:
    """Put back what `capture` took; returns (steps done, log). Without a checkpoint: (0, [])."""
    if saved is None:
        return 0, []
    for name, part in parts.items():
        part.load_state_dict(parallel.fitted(part, saved[name]))
    set_rng_state(saved["rng"])
    return saved["step"], saved["log"]


def rng_state() -> dict[str, torch.Tensor]:
    """The state of torch's global generators (dropout draws from them)."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, torch.Tensor]) -> None:
    """Put back what `rng_state` gave."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


class StopRequest:
    """Whether SIGINT or SIGTERM has asked the run to stop at the next step."""

    _is_asked = False

    @property
    def is_set(self) -> bool:
        """Whether any of the processes was asked; all of them must want to know at the same step."""
        return processes.any_of(self._is_asked)

    def __call__(self, signum: int, frame: object) -> None:
        if self._is_asked:
            raise KeyboardInterrupt
        self._is_asked = True
        print("stopping after this step; a second signal stops at once", file=sys.stderr)


@contextlib.contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Within the block the first SIGINT or SIGTERM only sets a mark, so that a loop can save before it ends."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
