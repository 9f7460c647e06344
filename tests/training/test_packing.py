"""Packing loses nothing and leaks nothing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from training import corpus, packing


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
