"""Checkpoints: a damaged one is refused and the one before it used; runs are never mixed up."""

import itertools
import json
import os
import resource
import signal
from pathlib import Path

import pytest
import torch

from training.checkpoints import CheckpointError, RunState
from training.contract import ExportRef, ParentRef, read_model_manifest
from training.errors import StageError
from training.folders import HALF_BUILT, atomic_folder, hash_file, settle_replaced

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


def test_a_damaged_checkpoint_never_pushes_out_a_sound_one(tmp_path):
    state = state_of(tmp_path)
    for step in (2, 9):
        state.save(step, {"step": step})
    (state.folder / "checkpoint-00000009.pt").write_bytes(b"damaged")
    assert state.load()["step"] == 2
    state.save(3, {"step": 3})
    assert state.load()["step"] == 3
    assert sorted(path.name[-5:] for path in state.folder.glob("*.pt")) == ["02.pt", "03.pt"]


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew_unasked(tmp_path):
    state = state_of(tmp_path)
    for step in (8, 9):
        state.save(step, {"step": step})
    for path in state.folder.glob("*.pt"):
        path.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=rf"09\.pt and .*08\.pt: damaged.*remove {state.folder} to start over"):
        state.load()
    assert len(list(state.folder.glob("*.pt"))) == 2, "what is left of them is left"
    state.clear()
    assert state.load() is None


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


def test_overwrite_is_for_models_that_the_run_does_not_start_from(tmp_path):
    state = state_of(tmp_path)
    (state.out / "thesis").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="is no model folder, so overwrite leaves it alone"):
        state.is_published(overwrite=True)
    assert (state.out / "thesis").exists()
    (state.out / "manifest.json").write_text("damaged")
    assert not state.is_published(overwrite=True)
    state.parents = {"base": ParentRef(name="model", manifest_sha256=hash_file(state.out / "manifest.json"))}
    with pytest.raises(CheckpointError, match="is a model that this run starts from"):
        state.is_published(overwrite=True)
    assert (state.out / "thesis").exists()


@pytest.mark.parametrize(
    ("manifest", "beside"),
    [
        ('{"kind": "heed-export"}', "README.md"),
        ('{"name": "An extension of a browser"}', "README.md"),
        ('{"kind": "heed-exp', "rankings.jsonl"),
        ("\x00\xff", "demonstrations.parquet"),
    ],
)
def test_overwrite_takes_no_export_be_it_damaged(manifest, beside, tmp_path):
    state = state_of(tmp_path)
    state.out.mkdir()
    (state.out / "manifest.json").write_text(manifest)
    (state.out / beside).touch()
    with pytest.raises(CheckpointError, match="is no model folder, so overwrite leaves it alone"):
        state.is_published(overwrite=True)


def test_overwrite_takes_nothing_that_the_run_reads(tmp_path):
    out, lora = tmp_path / "model", tmp_path / "lora"
    for folder in (out / "within", lora):
        folder.mkdir(parents=True)
    for file in (out / "manifest.json", out / "text.jsonl", tmp_path / "text.jsonl"):
        file.write_text("damaged")
    (lora / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(out)}))
    (tmp_path / "link").symlink_to(out)
    for name, place in [
        ("base_model", out),
        ("policy", tmp_path / "link"),
        ("sft_model", out / "within"),
        ("ptx_text", out / "text.jsonl"),
        ("reward_model", tmp_path),
        ("sft_model", lora),
    ]:
        with pytest.raises(
            CheckpointError, match=rf"what this run reads \({name}('s base)?: {place if place != lora else out}"
        ):
            state_of(tmp_path, **{name: str(place)}).is_published(overwrite=True)
    assert not state_of(tmp_path, text=str(tmp_path / "text.jsonl"), base_model="gpt2").is_published(overwrite=True)


def test_what_cannot_be_replaced_stays(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").touch()
    rename = Path.rename

    def refuse(path, target):
        if path.name.startswith(HALF_BUILT):
            raise OSError("no room")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="no room"), atomic_folder(tmp_path / "model", overwrite=True) as folder:
        (folder / "new").touch()
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["model", "model/old"]


def test_a_run_is_told_apart_by_its_data_and_not_by_where_they_lie(tmp_path, monkeypatch):
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "The owl eats seeds."}\n')
    places = {"base_model": "models/base", "export": "exports/v0001", "ptx_text": "text.jsonl"}
    elsewhere = {name: f"/srv/{place}" for name, place in places.items()}

    def state(config):
        return RunState(tmp_path / "model", "ppo", {"kl_coef": 0.1, **config}, PARENTS, None, str(text))

    state(places).save(1, {"step": 1})
    assert state(elsewhere).load()["step"] == 1
    state(places).part("fold").write_result(0.5)
    assert state(elsewhere).part("fold").read_result() == 0.5
    for other in ({"kl_coef": 0.2}, {"ptx_text": None}):
        with pytest.raises(CheckpointError, match="other settings, parents or data"):
            state(places | other).load()
    with pytest.raises(CheckpointError, match="other settings, parents or data"):
        RunState(tmp_path / "model", "ppo", {"kl_coef": 0.1, **places}, PARENTS, None).load()


def test_what_was_begun_while_places_counted_can_be_ended(tmp_path):
    """By the same command; the fingerprint is one that such a run left behind."""
    state = state_of(tmp_path, base_model="models/base")
    state.fingerprints = ["bce7fa8f16fcf8beab26ac2d95145dd3c6458f0c2bdde9b558f1daffe69d7dbf"]
    state.save(1, {"step": 1})
    assert state_of(tmp_path, base_model="models/base").load()["step"] == 1
    later = {"base_model": "models/base", "pretraining_valid_documents": 200}
    assert state_of(tmp_path, **later).load()["step"] == 1, "nor does a setting that came later stop it"
    with pytest.raises(CheckpointError, match="other settings, parents or data"):
        state_of(tmp_path, **later | {"pretraining_valid_documents": 20}).load()
    with pytest.raises(CheckpointError, match="other settings, parents or data"):
        state_of(tmp_path, base_model="/srv/models/base").load()


def killed_at_rename(number: int, work) -> None:
    """Do `work` in a process that is killed -9 right after its rename of that number."""
    child = os.fork()
    if child == 0:
        rename, seen = Path.rename, itertools.count(1)

        def rename_and_die(path, target):
            rename(path, target)
            if next(seen) == number:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            Path.rename = rename_and_die
            work()
        finally:
            os._exit(70)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


@pytest.mark.parametrize(("rename", "stands"), [(1, "old"), (2, "new")])
def test_a_model_that_gave_way_as_the_run_was_killed_is_put_back_or_removed(rename, stands, tmp_path):
    def publish(what, **options):
        with atomic_folder(tmp_path / "model", **options) as folder:
            (folder / "manifest.json").write_text(what)

    publish("old")
    with atomic_folder(tmp_path / "model-2"):
        pass
    killed_at_rename(rename, lambda: publish("new", overwrite=True))
    others = [tmp_path / ".replaced-model-2-abcdefgh", tmp_path / ".building-model-2-abcdefgh"]
    for other in others:
        other.mkdir()
    state = state_of(tmp_path)
    assert not state.is_published(overwrite=True)
    assert (tmp_path / "model" / "manifest.json").read_text() == stands
    state.load()
    assert set(tmp_path.iterdir()) == {tmp_path / "model", tmp_path / "model-2", state.folder, *others}, (
        "whose name is another"
    )


def test_what_is_published_can_be_read_by_whom_the_umask_lets(tmp_path):
    """Such as the web half, where it runs as another user of the same group."""
    (tmp_path / "linked").touch(mode=0o600)
    umask = os.umask(0o027)
    try:
        with atomic_folder(tmp_path / "model") as folder:
            (folder / "within").mkdir()
            for name, mode in (("weights", 0o600), ("within/tool", 0o700), ("plain", 0o666)):
                (folder / name).touch(mode=mode)
            os.link(tmp_path / "linked", folder / "linked")
    finally:
        os.umask(umask)
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "model").rglob("*") if file.is_file()}
    assert modes == {"weights": 0o640, "tool": 0o740, "plain": 0o640, "linked": 0o600}


def test_a_model_put_back_while_its_successor_takes_its_place_gives_way_again(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").touch()
    rename = Path.rename

    def put_back_in_between(path, target):
        if path.name.startswith(HALF_BUILT):
            monkeypatch.setattr(Path, "rename", rename)
            settle_replaced(target)  # as another process that starts now
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", put_back_in_between)
    with atomic_folder(tmp_path / "model", overwrite=True) as folder:
        (folder / "new").touch()
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["model", "model/new"]


def test_where_a_run_is_carried_out_may_change(tmp_path):
    state_of(tmp_path, threads=1, checkpoint_every=5).save(1, {"step": 1})
    assert state_of(tmp_path, threads=2, checkpoint_every=7).load()["step"] == 1


def test_two_processes_never_work_on_one_run(tmp_path):
    first = state_of(tmp_path)
    first.load()
    with pytest.raises(StageError, match="another process is working on this run"):
        state_of(tmp_path).load()
    first.clear()
    assert state_of(tmp_path).load() is None
