"""Checkpoints: written atomically, verified on load, pruned to the newest two; a resumed run equals one never killed.

A stage keeps its unfinished state beside its output, in `OUT.run/`: `checkpoint-00000120.pt` with the SHA-256 of its bytes
in `checkpoint-00000120.pt.sha256`. The folder goes when the model is published.

Of several processes the main one reads and writes, and tells the others. A file holds whole tensors however they were sharded,
so a run goes on under any number of processes.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

from training import adapters, parallel, processes
from training.contract import (
    KINDS,
    ContractError,
    ExportRef,
    ParentRef,
    hash_file,
    read_model_manifest,
    write_atomically,
)
from training.errors import StageError
from training.folders import hold, remove_half_built, settle_replaced, sync_folder

KEEP = 2
"""Checkpoints kept: the newest, and the one before it in case the newest is damaged."""

FREE_FIELDS = {"out", "device", "threads", "checkpoint_every", "overwrite", "track", "dry_run", "parallel"}
"""Config fields that decide how a run is carried out, not what comes of it; a resumed run may change them."""

PLACES = {"base_model", "sft_model", "policy", "reward_model", "export", "text", "pretraining_text", "ptx_text"}
"""Config fields that say where data lie. A run is told apart by what is there (parents, export, text), wherever it is called from."""


LATER = {"pretraining_valid_documents": 200}
"""Config fields that came later, and what was done before: with that value a run is told apart as if there were no such field, so
that what was begun before may go on."""


def _counting(config: dict) -> dict[str, Any]:
    """Of a config the fields that decide what comes of a run."""
    return {name: value for name, value in config.items() if name not in FREE_FIELDS and LATER.get(name, ...) != value}


def _settings(config: dict) -> dict[str, Any]:
    """Of a config what tells a run apart; of a place only whether there is one."""
    return {name: value is not None if name in PLACES else value for name, value in _counting(config).items()}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _lineage(parents: dict[str, ParentRef]) -> dict[str, str]:
    return {role: ref.manifest_sha256 for role, ref in sorted(parents.items())}


def _holds_model(folder: Path) -> bool:
    """Whether a folder is a model's, be it damaged: by its manifest's kind or, where that cannot be read, for want of an export's files."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        return False
    try:
        fields = json.loads(manifest.read_bytes())
    except ValueError:
        return not any((folder / name).exists() for kind in KINDS for name in (kind.jsonl, kind.parquet))
    return isinstance(fields, dict) and fields.get("kind") == "heed-model"


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
        self.text_facts = {"text_sha256": hash_file(text)} if text else {}
        data = [_lineage(parents), export.data_sha256 if export else None, *self.text_facts.values()]
        self.settings, as_given = _settings(config), _counting(config)
        # The second is how a run was told apart while places counted: what was begun then may end.
        self.fingerprints = [_digest([stage, kept, *data]) for kept in (self.settings, as_given)]
        self.parents = parents
        self.export = export
        self._held: BinaryIO | None = None
        self.places = {name: Path(value) for name, value in config.items() if name in PLACES and value}

    def is_published(self, overwrite: bool = False) -> bool:
        """True when this very run is already done. Raises CheckpointError when the output is of another run.

        With `overwrite` another run's output may be there, and gives way when this one's model is whole; but nothing that is no
        model's, nor what this run reads.
        """
        return processes.from_main(lambda: self._is_published(overwrite))

    def _is_published(self, overwrite: bool) -> bool:
        settle_replaced(self.out)
        if not self.out.exists():
            return False
        try:
            manifest = read_model_manifest(self.out)
            same = _settings(manifest.config) == self.settings and _lineage(manifest.parents) == _lineage(self.parents)
            same &= manifest.export == self.export
            same &= manifest.metrics.get("text_sha256") == self.text_facts.get("text_sha256")
            if same and not overwrite:
                return True
        except ContractError as error:
            if not overwrite:
                raise CheckpointError(f"{self.out} exists and is no intact model folder: {error}") from None
        if not overwrite:
            raise CheckpointError(
                f"{self.out} exists with other settings or parents, or of other data; choose another out, or set overwrite"
            )
        self._check_gives_way()
        return False

    def _check_gives_way(self) -> None:
        """Raise CheckpointError unless what is there is a model, be it damaged, that this run does without."""
        if not _holds_model(self.out):
            raise CheckpointError(f"{self.out} is no model folder, so overwrite leaves it alone; choose another out")
        if hash_file(self.out / "manifest.json") in {parent.manifest_sha256 for parent in self.parents.values()}:
            raise CheckpointError(f"{self.out} is a model that this run starts from; choose another out")
        bases = {
            f"{name}'s base": Path(adapters.base_of(at)) for name, at in self.places.items() if adapters.is_adapter(at)
        }
        out = self.out.resolve()
        for name, place in (self.places | bases).items():
            at = place.resolve()
            if place.exists() and (out == at or out in at.parents or at in out.parents):
                raise CheckpointError(
                    f"{self.out} is, holds or lies in what this run reads ({name}: {place}); choose another out"
                )

    def load(self) -> dict[str, Any] | None:
        """The newest checkpoint that is whole, or None where there is none yet. A damaged one is named on stderr, the one before used.

        Raises CheckpointError when another process is at this run, when the checkpoints belong to a run with other settings,
        parents or data, or when all of them are damaged: hours of work must not be begun anew unasked.
        """
        return processes.from_main(self._load)

    def _load(self) -> dict[str, Any] | None:
        self._lock()
        found = sorted(self.folder.glob("checkpoint-*.pt"), reverse=True)
        for path in found:
            digest = path.with_name(path.name + ".sha256")
            if not digest.exists() or digest.read_text().strip() != hash_file(path):
                print(f"{path}: does not match its checksum", file=sys.stderr)
                continue
            saved = torch.load(path, map_location="cpu", weights_only=True)
            if saved["fingerprint"] not in self.fingerprints:
                raise CheckpointError(
                    f"{path} belongs to a run with other settings, parents or data; "
                    f"remove {self.folder} to start over, or choose another out"
                )
            if path != found[0]:
                print(f"going on from the checkpoint before it, {path.name}", file=sys.stderr)
            return saved["state"]
        if found:
            names = " and ".join(path.name for path in found)
            raise CheckpointError(
                f"{self.folder}: {names}: damaged, and no other checkpoint to go on from; remove {self.folder} to start over"
            )
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
                torch.save({"fingerprint": self.fingerprints[0], "state": state}, file)
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
        if self._held:
            self._held.close()
        self._held = hold(self.folder)
        remove_half_built(self.out.parent, self.out.name)

    def part(self, name: str) -> RunState:
        """A run within this one, such as a fold: checkpoints of its own under this one's folder, and gone with it."""
        part = copy.copy(self)
        part._held = None
        part.out = self.folder / name
        part.folder = self.folder / f"{name}.run"
        part.fingerprints = [hashlib.sha256(f"{own} {name}".encode()).hexdigest() for own in self.fingerprints]
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
        return saved["result"] if saved["fingerprint"] in self.fingerprints else None

    def write_result(self, result: Any) -> None:
        """Keep what this part came to; its checkpoints have done their work and go."""
        if not processes.is_main():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"fingerprint": self.fingerprints[0], "result": result})
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
