"""Checkpoints: a damaged one is refused and the one before it used; runs are never mixed up."""

import resource
import signal

import pytest
import torch

from training.checkpoints import CheckpointError, RunState
from training.contract import ExportRef, ParentRef, read_model_manifest

PARENTS = {"base": ParentRef(name="base", manifest_sha256="a" * 64)}


def state_of(folder, export=None, parents=PARENTS, **config):
    return RunState(folder / "model", "sft", {"out": "x", "learning_rate": 1e-3, **config}, parents, export)


def test_the_newest_checkpoint_is_loaded_and_older_ones_pruned(tmp_path):
    state = state_of(tmp_path)
    assert state.load() is None
    for step in (1, 2, 3):
        state.save(step, {"step": step, "weights": torch.full((4,), float(step))})
    assert state.load()["step"] == 3
    assert sorted(file.name for file in state.folder.glob("*.pt")) == [
        "checkpoint-00000002.pt",
        "checkpoint-00000003.pt",
    ]
    assert len(list(state.folder.glob("*.sha256"))) == 2
    state.clear()
    assert not state.folder.exists()


def test_a_flipped_byte_is_refused_and_the_checkpoint_before_it_used(tmp_path, capsys):
    state = state_of(tmp_path)
    for step in (1, 2):
        state.save(step, {"step": step})
    newest = state.folder / "checkpoint-00000002.pt"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    assert state.load()["step"] == 1
    assert "checkpoint-00000002.pt: does not match its checksum" in capsys.readouterr().err


def test_a_half_written_checkpoint_does_not_count(tmp_path):
    state = state_of(tmp_path)
    state.save(1, {"step": 1})
    (state.folder / "checkpoint-00000002.pt").write_bytes(b"half")
    assert state.load()["step"] == 1


def test_a_full_disk_is_called_so_and_leaves_the_checkpoint_before(tmp_path):
    state, limits = state_of(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    state.save(1, {"step": 1})
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(CheckpointError, match=r"checkpoint-00000002\.pt: File too large"):
            state.save(2, {"step": 2, "weights": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert state.load()["step"] == 1


def test_damaged_checkpoints_never_push_out_a_sound_one(tmp_path, capsys):
    state = state_of(tmp_path)
    for step in (8, 9):
        state.save(step, {"step": step})
    for path in state.folder.glob("*.pt"):
        path.write_bytes(b"damaged")
    assert state.load() is None
    state.save(3, {"step": 3})
    assert state.load()["step"] == 3
    assert [path.name for path in state.folder.glob("*.pt")] == ["checkpoint-00000003.pt"]


def test_a_run_killed_while_it_writes_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    state = state_of(tmp_path)
    state.save(1, {"step": 1})

    def dies(content, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        state.save(2, {"step": 2})
    assert state.load()["step"] == 1


@pytest.mark.parametrize(
    "other",
    [
        {"learning_rate": 2e-3},
        {"parents": {"base": ParentRef(name="base", manifest_sha256="b" * 64)}},
        {"export": ExportRef(name="v0001", data_sha256="c" * 64)},
    ],
)
def test_checkpoints_of_another_run_are_refused(tmp_path, other):
    state_of(tmp_path).save(1, {"step": 1})
    with pytest.raises(CheckpointError, match="other settings, parents or data"):
        state_of(tmp_path, **other).load()


def test_a_model_is_this_runs_only_where_its_data_are_too(sft_model):
    manifest = read_model_manifest(sft_model)

    def state(export):
        return RunState(sft_model, "sft", manifest.config, manifest.parents, export)

    assert state(manifest.export).is_published()
    with pytest.raises(CheckpointError, match="or of other data"):
        state(ExportRef(name=manifest.export.name, data_sha256="c" * 64)).is_published()


def test_the_contents_of_a_text_file_belong_to_the_run(tmp_path):
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "The owl eats seeds."}\n')

    def state():
        return RunState(tmp_path / "model", "sft", {}, PARENTS, None, str(text))

    state().save(1, {"step": 1})
    assert state().load()["step"] == 1
    text.write_text('{"text": "The owl eats worms."}\n')
    with pytest.raises(CheckpointError, match="other settings, parents or data"):
        state().load()


def test_overwrite_removes_models_and_nothing_else(tmp_path):
    state = state_of(tmp_path)
    (state.out / "thesis").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="is no model folder, so overwrite leaves it alone"):
        state.is_published(overwrite=True)
    assert (state.out / "thesis").exists()
    (state.out / "manifest.json").write_text("damaged")
    assert not state.is_published(overwrite=True) and not state.out.exists()


def test_where_a_run_is_carried_out_may_change(tmp_path):
    state_of(tmp_path, threads=1, checkpoint_every=5).save(1, {"step": 1})
    assert state_of(tmp_path, threads=2, checkpoint_every=7).load()["step"] == 1


def test_two_processes_never_work_on_one_run(tmp_path):
    first = state_of(tmp_path)
    first.load()
    with pytest.raises(CheckpointError, match="another process is working on this run"):
        state_of(tmp_path).load()
    first.clear()
    assert state_of(tmp_path).load() is None
