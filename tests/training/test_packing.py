"""Packing loses nothing and leaks nothing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, MistralConfig

from training import corpus, packing
from training.data import Example
from training.errors import StageError


@given(st.lists(st.integers(1, 16), max_size=60))
def test_every_document_stands_in_one_row_within_capacity(lengths):
    rows = packing.first_fit(lengths, 16, open_rows=4)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 16 for row in rows)


def test_a_document_longer_than_a_row_is_an_error():
    with pytest.raises(ValueError, match="document 1 has 17 tokens"):
        packing.first_fit([3, 17], 16)


def test_packed_loss_equals_unpacked_loss(policy):
    generator = torch.Generator().manual_seed(1)
    documents = [torch.randint(5, 300, (n,), generator=generator).tolist() for n in (7, 12, 5, 20, 3, 9)]
    packed = packing.pack(documents, capacity=24, pad_id=1)
    assert len(packed.ids_BT) < len(documents), "rows hold several documents"
    policy.eval()
    total, tokens = corpus.loss_sum(policy, packed, list(range(len(packed.ids_BT))), "cpu")
    alone = 0.0
    for document in documents:
        ids = torch.tensor([document])
        alone += cross_entropy(policy(ids).logits[0, :-1], ids[0, 1:], reduction="sum").item()
    assert tokens == sum(len(document) - 1 for document in documents)
    assert total.item() == pytest.approx(alone, rel=1e-5)


def llama(**fields):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    return AutoModelForCausalLM.from_config(MistralConfig(**sizes, intermediate_size=32, vocab_size=50, **fields))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_token_sees_its_own_document_alone_whatever_the_attention(attention):
    model = llama(sliding_window=None)
    model.set_attn_implementation(attention)
    first, second, other = [5, 6, 7], [8, 9], [20, 21, 22]
    seen = []
    for beside in (first, other):
        rows = packing.pack([beside, second], capacity=6, pad_id=1)
        mask = packing.mask_for(model, rows.segments_BT)
        seen.append(model(rows.ids_BT, attention_mask=mask, position_ids=rows.positions_BT).logits[0, 3:5])
    torch.testing.assert_close(seen[0], seen[1], rtol=0, atol=0)
    torch.testing.assert_close(seen[0], model(torch.tensor([second])).logits[0], rtol=1e-5, atol=1e-6)


def test_packing_is_refused_where_the_mask_would_not_be_obeyed():
    segments = torch.ones(1, 16, dtype=torch.long)
    with pytest.raises(StageError, match="longer than the attention window of 8"):
        packing.mask_for(llama(sliding_window=8), segments)
    flash = llama(sliding_window=None)
    flash.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(StageError, match="this model uses flash_attention_2"):
        packing.mask_for(flash, segments)


def test_the_first_token_of_a_packed_example_is_no_target():
    rows, loss = packing.pack_examples([Example([5, 6, 7], 1), Example([8, 9], 0)], capacity=6, pad_id=1)
    assert rows.ids_BT.tolist() == [[5, 6, 7, 8, 9, 1]]
    assert loss.tolist() == [[False, True, True, False, True, False]]
