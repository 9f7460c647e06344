"""What a command that fails says when a launcher started it in several processes: once, and with the status of one process."""

import subprocess
import sys
from pathlib import Path

import pytest

from training import __main__

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["sft", "--out", "o", "--base-model", "b", "--export", "e"]


@pytest.mark.parametrize(("rank", "local_rank"), [("0", "0"), ("8", "0"), ("1", "1")])
@pytest.mark.parametrize("wrong", [["--epochs", "0"], ["--nonsense", "1"]])
def test_the_first_process_of_a_machine_speaks_and_a_later_one_lets_it(rank, local_rank, wrong, monkeypatch, capsys):
    for name, value in {"RANK": rank, "LOCAL_RANK": local_rank, "WORLD_SIZE": "16"}.items():
        monkeypatch.setenv(name, value)
    waited = []
    monkeypatch.setattr(__main__.time, "sleep", lambda seconds: waited.append((seconds, capsys.readouterr().err)))
    try:
        status = __main__.main([*WORDS, *wrong])
    except SystemExit as end:
        status = end.code
    said = capsys.readouterr().err
    assert status == 2 and wrong[0] in said
    assert waited == ([] if local_rank == "0" else [(__main__.WAIT_SECONDS, "")]), "it said nothing before"
    assert said.startswith("process 1: ") == (local_rank == "1")


@pytest.mark.slow
def test_torchrun_shows_an_error_once(tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "training"]
    done = subprocess.run([*launch, *WORDS], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert done.stderr.count("sft: e/manifest.json: No such file or directory") == 1, done.stderr
    assert "exitcode  : 1" in done.stderr, "the status of one process"
