"""The model manifest: written last, checked on reading, closed to what the contract does not know."""

import json

import pytest

from training import contract as c

PARENT = c.ParentRef(name="sft-1", manifest_sha256="a" * 64)


@pytest.fixture
def model_folder(tmp_path):
    folder = tmp_path / "ppo-1"
    (folder / "sub").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "sub" / "notes.txt").write_text("hello")
    write(folder)
    return folder


def write(folder, **fields):
    options = {
        "name": "ppo-1", "stage": "ppo", "parents": {"reference": PARENT},
        "export": c.ExportRef(name="v0007", data_sha256="b" * 64), "config": {"lr": 1e-5}, "metrics": {"kl": 3.5},
        "seed": 3,
    }  # fmt: skip
    return c.write_model_manifest(folder, **options | fields)


def test_it_reads_back_as_written(model_folder):
    manifest = c.read_model_manifest(model_folder)
    assert (manifest.name, manifest.stage, manifest.seed) == ("ppo-1", "ppo", 3)
    assert manifest.parents == {"reference": PARENT}
    assert sorted(manifest.files) == ["model.safetensors", "sub/notes.txt"]
    assert manifest.libraries["python"]
    assert c.parent_ref(model_folder) == c.ParentRef(
        name="ppo-1", manifest_sha256=c.hash_file(model_folder / "manifest.json")
    )


def test_writing_it_again_does_not_list_itself(model_folder):
    assert "manifest.json" not in write(model_folder).files


def test_changed_missing_and_foreign_files_are_named(model_folder):
    (model_folder / "model.safetensors").write_bytes(b"Weights")
    with pytest.raises(c.ContractError, match=r"model\.safetensors: does not match its checksum"):
        c.read_model_manifest(model_folder)
    assert c.read_model_manifest(model_folder, verify=False).name == "ppo-1"
    (model_folder / "model.safetensors").unlink()
    with pytest.raises(c.ContractError, match=r"model\.safetensors: missing"):
        c.read_model_manifest(model_folder)


def test_a_manifest_cannot_point_outside_its_folder(model_folder):
    path = model_folder / "manifest.json"
    manifest = json.loads(path.read_bytes())
    del manifest["fields_sha256"]
    manifest["files"]["../../etc/passwd"] = manifest["files"].pop("sub/notes.txt")
    path.write_text(json.dumps(manifest))
    with pytest.raises(c.ContractError, match="outside the folder"):
        c.read_model_manifest(model_folder)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("stage", "magic", "field stage"), ("seed", "3", "field seed"), ("parents", {"rm": {"name": "x"}}, "_sha256"),
     ("colour", "red", "field colour: unknown"), ("kind", "heed-export", "field kind")],
)  # fmt: skip
def test_the_reader_is_strict(model_folder, field, value, message):
    path = model_folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {field: value}))
    with pytest.raises(c.ContractError, match=rf"manifest\.json: .*{message}"):
        c.read_model_manifest(model_folder)


@pytest.mark.parametrize("fields", [{"stage": "magic"}, {"seed": "3"}, {"metrics": {"f": object()}}, {"name": ""}])
def test_the_writer_is_strict_and_keeps_the_old_one(model_folder, fields):
    before = (model_folder / "manifest.json").read_bytes()
    with pytest.raises(c.ContractError, match=r"manifest\.json"):
        write(model_folder, **fields)
    assert (model_folder / "manifest.json").read_bytes() == before


def test_a_changed_figure_is_refused(model_folder):
    path = model_folder / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"kl": 3.5', b'"kl": 3.4'))
    with pytest.raises(c.ContractError, match=r"manifest\.json: field fields_sha256: does not match"):
        c.read_model_manifest(model_folder, verify=False)


def test_figures_that_json_has_no_word_for_read_back(model_folder):
    write(model_folder, metrics={"nan": float("nan"), "tiny": 1e-300, "pair": (1, 2)}, config={"big": 2**60})
    assert c.read_model_manifest(model_folder).metrics == {"nan": None, "tiny": 1e-300, "pair": [1, 2]}


def test_no_manifest_is_an_error_that_names_the_place(tmp_path):
    with pytest.raises(c.ContractError, match=r"manifest\.json: No such file"):
        c.read_model_manifest(tmp_path)
