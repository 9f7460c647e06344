"""Really small models and an export of simulated labels, made once per run without the web half."""

import random

import pytest
import torch

from tests.loop import preference, world
from training import contract, models, pretrain, rm, sft, tinyworld

SMALL = {
    "documents": 300,
    "valid_documents": 20,
    "vocab_size": 400,
    "width": 16,
    "layers": 1,
    "heads": 2,
    "mlp_width": 32,
}
LIMITS = {"prompt_tokens": 200, "response_tokens": 200}


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Bit-equal results need one number of threads everywhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("world")


@pytest.fixture(scope="session")
def base(folder, one_thread):
    """A base model of some 13,000 parameters after four steps."""
    config = pretrain.Config(out=str(folder / "base"), **SMALL, row_tokens=256, batch_rows=2, steps=4, warmup_steps=1)
    return pretrain.run(config)


@pytest.fixture(scope="session")
def export(folder):
    """240 prompts, 28 demonstrations, 28 rankings of 4 responses; one ranking is by a held-out labeler."""
    prompts = world.prompt_rows(240, seed=3)
    chosen = [row for row in prompts if row.split == "train"][:24] + [row for row in prompts if row.split == "valid"][
        :4
    ]
    demonstrations = [world.demonstration_row(row, 0) for row in chosen]
    rankings = [ranking_row(row) for row in chosen]
    rankings[0] = contract.msgspec.structs.replace(rankings[0], labeler_group="held_out")
    world.write_export(folder / "v0001", 1, prompts, demonstrations, rankings)
    return folder / "v0001"


def ranking_row(prompt, k=4):
    """A ranking task over answers of the tiny world's own generator."""
    text = prompt.messages[0].content
    rng = random.Random(text)
    answers = [tinyworld.draw_answer(tinyworld.read_ask(text), rng, coverage=0.7) for _ in range(k)]
    reasons = ["length" if i == 0 else "stop" for i in range(k)]
    return world.ranking_row(prompt, answers, reasons, [preference.Labeler("simulated-1", 0)])


@pytest.fixture(scope="session")
def sft_model(folder, base, export):
    fields = {"epochs": 1, "batch_size": 4, "learning_rate": 1e-3}
    return sft.run(sft.Config(out=str(folder / "sft"), base_model=str(base), export=str(export), **fields, **LIMITS))


@pytest.fixture(scope="session")
def reward_model(folder, sft_model, export):
    fields = {"epochs": 1, "batch_size": 4, "learning_rate": 1e-3}
    return rm.run(rm.Config(out=str(folder / "rm"), sft_model=str(sft_model), export=str(export), **fields, **LIMITS))


@pytest.fixture(scope="session")
def tokenizer(base):
    return models.load_tokenizer(base)


@pytest.fixture
def policy(base):
    return models.load_policy(base)
