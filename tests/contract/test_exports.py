"""The export: golden bytes, round trip, strictness on both ends, damage named by file and line."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.contract.conftest import (
    demonstration,
    example_rows,
    prompt,
    ranking,
    ranking_row,
    uid,
    write_example,
)
from training import contract as c

GOLDEN = Path(__file__).parent / "golden" / "v0007"
SCHEMA1 = Path(__file__).parent / "golden" / "schema1" / "v0007"
"""As it was written with `revisions`, and with flags as lists of names and values."""


def test_an_export_is_byte_for_byte_the_golden_one(export_folder):
    written = {path.name: path.read_bytes() for path in export_folder.iterdir()}
    golden = {path.name: path.read_bytes() for path in GOLDEN.iterdir()}
    assert sorted(written) == sorted([*c.DATA_FILES, "README.md", "manifest.json"])
    for name in sorted(golden):
        assert written[name] == golden[name], name


def test_the_golden_export_reads_back_equal():
    export = c.read_export(GOLDEN)
    rows = example_rows()
    assert list(export.prompts()) == rows["prompts"]
    assert list(export.demonstrations()) == rows["demonstrations"]
    assert list(export.rankings()) == rows["rankings"]
    assert export.ref == c.ExportRef(name="v0007", data_sha256=export.manifest.data_sha256)


def test_an_export_of_schema_1_reads_as_the_same_rows():
    export = c.read_export(SCHEMA1)
    assert export.manifest.schema_version == 1
    rows = example_rows()
    assert list(export.prompts()) == rows["prompts"]
    assert list(export.demonstrations()) == rows["demonstrations"]
    assert list(export.rankings()) == rows["rankings"]


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        (
            "demonstrations",
            b'"response":"Better","labeler"',
            b'"response":"Bitter","labeler"',
            "revisions: the last one differs",
        ),
        ("rankings", b'"revisions":[{', b'"revisions":[],"x":[{', "revisions: the last one differs"),
        ("rankings", b'"revisions":', b'"revisions": ', "not in canonical form"),
        ("rankings", b'"revisions":', b'"visions":', "revisions: missing"),
        ("rankings", b'"batch":"first"', b'"batch":1', "field batch"),
        ("rankings", b'"value":false', b'"value":0', "field flags: Expected `bool"),
        ("prompts", b'"kind":"plain"', b'"kind":"plane"', "field kind"),
        ("prompts", b'{"prompt_id"', b'"prompt_id"', "malformed"),
    ],
)
def test_damage_in_an_export_of_schema_1_is_named(tmp_path, name, old, new, message):
    shutil.copytree(SCHEMA1, tmp_path / "v0007")
    path = tmp_path / "v0007" / f"{name}.jsonl"
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    with pytest.raises(c.ContractError, match=rf"{name}\.jsonl line 1: .*{message}.*does not match its checksum"):
        c.read_export(tmp_path / "v0007")
    with pytest.raises(c.ContractError, match=rf"{name}\.jsonl line 1: .*{message}"):
        list(getattr(c.read_export(tmp_path / "v0007", verify=False), name)())


def test_parquet_holds_the_same_rows(export_folder):
    for name in ("prompts", "demonstrations", "rankings"):
        twin = pq.read_table(export_folder / f"{name}.parquet").to_pylist()
        assert twin == [json.loads(line) for line in (export_folder / f"{name}.jsonl").read_text().splitlines()]


def test_the_data_hash_ignores_number_time_and_code(tmp_path):
    first = write_example(tmp_path / "a")
    second = write_example(tmp_path / "b", version=8, created_at="2026-05-05T00:00:00Z", code_version="other")
    assert first.data_sha256 == second.data_sha256
    third = write_example(tmp_path / "c", prompts=[prompt(1)])
    assert third.data_sha256 != first.data_sha256


def test_an_empty_export_is_an_export(tmp_path):
    write_example(tmp_path / "empty", prompts=[], demonstrations=[], rankings=[])
    export = c.read_export(tmp_path / "empty")
    assert list(export.rankings()) == []
    assert pq.read_table(tmp_path / "empty" / "rankings.parquet").num_rows == 0


@pytest.mark.parametrize("name", [*c.DATA_FILES, "README.md"])
def test_every_flipped_byte_is_refused_naming_the_file(export_folder, name):
    data = bytearray((export_folder / name).read_bytes())
    for position in range(0, len(data), max(1, len(data) // 40)):
        flipped = data.copy()
        flipped[position] ^= 1
        (export_folder / name).write_bytes(flipped)
        with pytest.raises(c.ContractError, match=name.replace(".", r"\.")):
            c.read_export(export_folder)


@pytest.mark.parametrize(
    ("old", "new"), [(b"Better", b"Bitter"), (b'"revision":2', b'"revision":x'), (b"2026", b"2\xff26")]
)
def test_a_changed_line_is_named(export_folder, old, new):
    path = export_folder / "demonstrations.jsonl"
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second.replace(old, new, 1))
    with pytest.raises(c.ContractError, match=r"demonstrations\.jsonl line 2"):
        c.read_export(export_folder)


def test_a_changed_parquet_row_is_named(export_folder, tmp_path):
    write_example(tmp_path / "other", prompts=[prompt(1), prompt(2, author="a-2")])
    (export_folder / "prompts.parquet").write_bytes((tmp_path / "other" / "prompts.parquet").read_bytes())
    with pytest.raises(c.ContractError, match=r"prompts\.parquet row 2"):
        c.read_export(export_folder)


def test_a_lost_or_added_line_is_refused(export_folder):
    path = export_folder / "prompts.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for changed in (lines[:1], [*lines, lines[1]]):
        path.write_bytes(b"".join(changed))
        with pytest.raises(c.ContractError, match=r"prompts\.jsonl line [23]"):
            c.read_export(export_folder)
        with pytest.raises(c.ContractError, match=r"prompts\.jsonl"):
            list(c.read_export(export_folder, verify=False).prompts())
    path.unlink()
    with pytest.raises(c.ContractError, match=r"prompts\.jsonl: missing"):
        c.read_export(export_folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.pop("split"), "field split: missing"),
        (lambda row: row.update(colour="red"), "field colour: unknown field"),
        (lambda row: row["rankings"][0].update(tiers="x"), r"field rankings\[0\].tiers: expected `array`"),
        (lambda row: row["rankings"][0].update(tiers=[[uid(100)], [uid(101)]]), rf"tiers: leaves out {uid(102)}"),
        (lambda row: row["rankings"][0]["tiers"][0].append(uid(9)), rf"tiers: holds foreign {uid(9)}"),
        (lambda row: row["rankings"][0]["tiers"][0].append(uid(100)), "tiers: repeats a response"),
        (lambda row: row["rankings"][0]["tiers"].append([]), "empty tier"),
        (lambda row: row["rankings"][0]["ratings"][0].update(quality=8), "quality"),
        (lambda row: row["rankings"][0]["ratings"][0].update(response_id=uid(9)), "holds foreign"),
        (lambda row: row["rankings"][0]["shown_order"].pop(), "shown_order: leaves out"),
        (
            lambda row: row["rankings"][0]["prompt_flags"]["yes"].append("opinion"),
            r"\[0\]: the flag 'opinion' stands there twice",
        ),
        (
            lambda row: row["rankings"][0]["prompt_flags"].update(no=[], unanswered=["a", "a"]),
            "the flag 'a' stands there twice",
        ),
        (lambda row: row["rankings"][0]["ratings"][1]["flags"].pop("no"), r"ratings\[1\].flags.no: missing"),
        (lambda row: row["rankings"][0].update(all_bad=None), "all_bad: expected `bool`, got `null`"),
        (lambda row: row["rankings"][0].update(submitted_at="yesterday"), "submitted_at"),
        (lambda row: row["rankings"][0].update(revision=2), r"earlier_revisions: expected \[1\], got \[\]"),
        (lambda row: row["responses"].reverse(), "responses: not in order"),
        (lambda row: row["responses"][0].update(sampling="[]"), "sampling: expected a JSON object"),
        (lambda row: row.update(task_id="7"), "field task_id"),
        (lambda row: row.update(messages=[]), "field messages: empty"),
        (lambda row: row.update(split="all"), "field split"),
    ],
)
def test_the_reader_is_strict(export_folder, change, message):
    path = export_folder / "rankings.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    row = json.loads(lines[0])
    change(row)
    path.write_bytes(msgspec.json.encode(row) + b"\n" + lines[1])
    with pytest.raises(c.ContractError, match=rf"rankings\.jsonl line 1: .*{message}"):
        list(c.read_export(export_folder, verify=False).rankings())


def test_what_is_not_canonical_is_refused(export_folder):
    path = export_folder / "prompts.jsonl"
    first, rest = path.read_bytes().split(b"\n", 1)
    for changed in (first.replace(b":", b": ", 1), first[:-1] + b',"split":"train"}'):
        path.write_bytes(changed + b"\n" + rest)
        with pytest.raises(c.ContractError, match=r"prompts\.jsonl line 1: not in canonical form"):
            list(c.read_export(export_folder, verify=False).prompts())


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"prompts": [prompt(2), prompt(1)]}, r"prompts\.jsonl line 2: field prompt_id: comes before"),
        ({"prompts": [prompt(1), prompt(1)]}, r"prompts\.jsonl line 2: field prompt_id: repeats"),
        ({"prompts": [prompt(1, metadata="[]")]}, r"prompts\.jsonl line 1: field metadata: expected a JSON object"),
        ({"prompts": [prompt(1, external_id=5)]}, r"prompts\.jsonl line 1: field external_id"),
        ({"prompts": [prompt(1, use_case="\ud800")]}, r"prompts\.jsonl line 1: .*surrogates"),
        ({"demonstrations": [demonstration(1, revision=1)]}, r"demonstrations\.jsonl line 1: field earlier_revisions"),
        ({"rankings": [ranking_row(1, [ranking(1, [[uid(100)]])])]}, r"rankings\.jsonl line 1: .*tiers: leaves out"),
        ({"rankings": [ranking_row(1, [], responses=[])]}, "at least 2"),
    ],
)
def test_the_writer_is_as_strict_and_leaves_nothing_behind(tmp_path, rows, message):
    with pytest.raises(c.ContractError, match=message):
        write_example(tmp_path / "v0001", **rows)
    assert list(tmp_path.iterdir()) == []


def test_an_export_is_never_replaced(export_folder):
    before = {path.name: path.read_bytes() for path in export_folder.iterdir()}
    with pytest.raises(FileExistsError, match="never changes"):
        write_example(export_folder)
    assert {path.name: path.read_bytes() for path in export_folder.iterdir()} == before


def test_a_killed_writer_leaves_no_export(tmp_path):
    program = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.contract.conftest import prompt, write_example
def rows():
    yield prompt(1)
    os.kill(os.getpid(), 9)
write_example({str(tmp_path / "v0001")!r}, prompts=rows())
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == -9
    assert not (tmp_path / "v0001").exists()
    assert len(c.remove_half_built(tmp_path)) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(kind="heed-model"), "field kind"),
        (lambda m: m.update(schema_version=3), "field schema_version"),
        (lambda m: m.update(extra=1), "field extra: unknown"),
        (lambda m: m.pop("query"), "field query: missing"),
        (lambda m: m["files"].pop("prompts.parquet"), r"field files: .*prompts\.parquet"),
        (lambda m: m.update(data_sha256="0" * 64), "field data_sha256"),
    ],
)
def test_a_wrong_manifest_is_refused(export_folder, change, message):
    path = export_folder / "manifest.json"
    manifest = json.loads(path.read_bytes())
    del manifest["fields_sha256"]  # which would be the first to object
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(c.ContractError, match=rf"manifest\.json: {message}"):
        c.read_export(export_folder)


def test_every_flipped_byte_of_the_manifest_is_refused(export_folder):
    path = export_folder / "manifest.json"
    data = path.read_bytes()
    for position, byte in enumerate(data):
        if chr(byte).isspace():
            continue
        path.write_bytes(data[:position] + bytes([byte ^ 1]) + data[position + 1 :])
        with pytest.raises(c.ContractError, match=r"manifest\.json: "):
            c.read_export(export_folder, verify=False)


def test_a_manifest_says_which_check_failed(export_folder):
    path = export_folder / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"rankings": 2\n', b'"rankings": 3\n'))
    with pytest.raises(c.ContractError, match=r"manifest\.json: field fields_sha256: does not match the other fields"):
        c.read_export(export_folder)


def test_a_manifest_from_before_its_checksum_is_read(export_folder):
    path = export_folder / "manifest.json"
    manifest = json.loads(path.read_bytes())
    stated = manifest.pop("fields_sha256")
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert stated == hashlib.sha256(canonical.encode()).hexdigest()
    old = json.dumps(manifest, indent=2).encode() + b"\n"
    path.write_bytes(old)
    assert c.encode_manifest(c.read_export(export_folder).manifest) == old


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
prompt_rows = st.builds(
    c.PromptRow,
    prompt_id=st.uuids(version=4).map(str),
    external_id=st.none() | texts,
    kind=st.sampled_from(["plain", "few_shot", "user_based"]),
    use_case=st.none() | texts,
    source=st.sampled_from(["import", "labeler", "playground"]),
    split=st.sampled_from(["train", "valid", "test"]),
    author=st.none() | texts,
    organization=st.none() | texts,
    messages=st.lists(
        st.builds(c.Message, role=st.sampled_from(["system", "user", "assistant"]), content=texts), min_size=1
    ),
    metadata=st.dictionaries(texts, st.none() | texts | st.booleans() | st.integers(), max_size=3).map(json.dumps),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(prompt_rows, max_size=8, unique_by=lambda row: row.prompt_id))
def test_any_row_survives_the_round_trip_in_both_formats(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("any") / "v0001"
    rows = sorted(rows, key=lambda row: row.prompt_id.encode())
    write_example(folder, prompts=iter(rows), demonstrations=[], rankings=[])
    assert list(c.read_export(folder).prompts()) == rows
    assert pq.read_table(folder / "prompts.parquet").to_pylist() == [msgspec.to_builtins(row) for row in rows]


def test_many_rows_and_long_texts_pass_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(c, "PIECE_BYTES", 4000)
    monkeypatch.setattr(c, "GROUP_BYTES", 12_000)
    rows = [prompt(n, use_case="x" * (n % 900)) for n in range(1, 2500)]
    write_example(tmp_path / "v0001", prompts=iter(rows))
    assert list(c.read_export(tmp_path / "v0001").prompts()) == rows
    assert pq.read_table(tmp_path / "v0001" / "prompts.parquet")["prompt_id"].to_pylist() == [
        row.prompt_id for row in rows
    ]
    with pq.ParquetFile(tmp_path / "v0001" / "prompts.parquet") as file:
        rows_of = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert len(rows_of) > 50
    assert max(rows_of) < 100


def test_the_contract_needs_neither_torch_nor_django():
    program = "import sys, training.contract; assert not {'torch', 'django', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])
