"""On a GPU: the losses of a CPU, in float32, in bf16 and compiled; with several GPUs, a process on each.

Needs torch, transformers and pytest only: `python -m pytest --noconftest -p no:cacheprovider tests/gpu`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from training import pretrain

ROOT = Path(__file__).resolve().parents[2]
TEXT = {"documents": 300, "valid_documents": 20, "vocab_size": 400, "row_tokens": 256, "batch_rows": 8}
MODEL = {"width": 64, "layers": 2, "heads": 4, "mlp_width": 128, "steps": 6, "warmup_steps": 1, "log_every": 1}

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def losses_of(folder):
    return [json.loads(line)["loss"] for line in (folder / "training_log.jsonl").read_text().splitlines()]


def train(out, **given):
    return losses_of(pretrain.run(pretrain.Config(out=str(out), **TEXT, **MODEL, **given)))


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory):
    return train(tmp_path_factory.mktemp("cpu") / "base", device="cpu")


@pytest.mark.parametrize(
    ("given", "tolerance"), [({}, 1e-4), ({"dtype": "bf16"}, 1e-2), ({"dtype": "bf16", "compile": True}, 1e-2)]
)
def test_a_gpu_gives_the_losses_of_a_cpu(given, tolerance, on_cpu, tmp_path):
    assert train(tmp_path / "base", device="cuda", **given) == pytest.approx(on_cpu, rel=tolerance)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_process_on_each_gpu_gives_the_losses_of_one(kind, on_cpu, tmp_path):
    given = {"out": tmp_path / "base", "parallel": kind, "device": "cuda"} | TEXT | MODEL
    words = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "training"]
    subprocess.run([*launch, "pretrain", *words], cwd=ROOT, env=dict(os.environ), check=True, timeout=280)
    assert losses_of(tmp_path / "base") == pytest.approx(on_cpu, rel=1e-4)
