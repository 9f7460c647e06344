"""The cache with room ahead holds what transformers' own would, while rows leave and buffers run full."""

import pytest
import torch
from transformers import (
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from training import generation, kv_cache

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "vocab_size": 40, "initializer_range": 0.3}
MODELS = {
    "qwen": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3)),
    "window": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=6)),
}


def draw(model, end):
    prompts = [[5, 6, 7, 8], [9], [10, 11]] * 4
    generator = torch.Generator().manual_seed(3)
    limits = {"eos_id": end, "pad_id": 0, "max_new_tokens": 24, "temperature": 0.7, "generator": generator}
    return generation.sample(model, prompts, **limits)


@pytest.mark.parametrize("kind", MODELS)
def test_samples_are_those_with_transformers_cache(kind, monkeypatch):
    torch.manual_seed(5)
    model = MODELS[kind]().eval()
    monkeypatch.setattr(kv_cache, "ROOM", 3)
    end = draw(model, -1).responses_BR.flatten().mode().values.item()
    ours = draw(model, end)
    assert len(set(ours.lengths_B.tolist())) > 2, "rows leave the batch, some of them while buffers grow"
    monkeypatch.setattr(generation, "roomy_cache", lambda model: DynamicCache(config=model.config))
    theirs = draw(model, end)
    assert ours.tokens() == theirs.tokens()
    torch.testing.assert_close(ours.logprobs_BR, theirs.logprobs_BR, rtol=1e-5, atol=1e-5)
    is_ours = [isinstance(layer, kv_cache.RoomyLayer) for layer in kv_cache.roomy_cache(model).layers]
    assert is_ours == [kind != "window"] * 2


def test_a_token_is_written_beside_the_others_and_none_is_copied(monkeypatch):
    monkeypatch.setattr(kv_cache, "ROOM", 3)
    layer, states = kv_cache.RoomyLayer(), torch.randn(2, 1, 9, 4)
    places = []
    for start, end in ((0, 4), (4, 5), (5, 6), (6, 7), (7, 8), (8, 9)):
        keys, values = layer.update(states[:, :, start:end], -states[:, :, start:end])
        assert torch.equal(keys, states[:, :, :end])
        assert torch.equal(values, -keys)
        places.append(keys.data_ptr())
    assert places[:4] == places[:1] * 4, "room for three after the first four"
    assert places[4] == places[5] != places[0]
    layer.batch_select_indices(torch.tensor([1]))
    keys, _ = layer.update(states[1:, :, :1], states[1:, :, :1])
    assert torch.equal(keys, torch.cat([states[1:], states[1:, :, :1]], dim=2))
    assert layer.get_seq_length() == 10
