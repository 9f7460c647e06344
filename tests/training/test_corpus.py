"""The pretraining text: rows are a function of seed and step, and what is held out is never trained on."""

import itertools
import json
from collections import Counter

import pytest

from training import corpus, data
from training.errors import StageError


def rows_of(packed):
    return {tuple(row) for row in packed.ids_BT.tolist()}


def test_the_rows_of_a_step_need_no_cursor():
    one_by_one = list(itertools.islice(data.shuffled_batches(10, 4, seed=7), 12))
    assert [corpus.rows_at(10, 4, seed=7, step=step) for step in reversed(range(12))] == one_by_one[::-1]
    assert sorted(corpus.rows_at(3, 6, seed=7, step=5)) == [0, 0, 1, 1, 2, 2], "a batch may take more than one epoch"
    assert corpus.rows_at(10, 4, seed=8, step=0) != one_by_one[0]


def test_held_out_documents_stand_in_rows_of_their_own(tokenizer):
    text = corpus.load(tokenizer, None, row_tokens=256, valid_documents=5, documents=20)
    assert text.documents == 25
    assert text.valid.segments_BT.amax(1).sum() == 5
    assert text.train.segments_BT.amax(1).sum() == 20
    assert not rows_of(text.train) & rows_of(text.valid)
    again = corpus.load(tokenizer, None, row_tokens=256, valid_documents=5, documents=20)
    assert (again.train.ids_BT == text.train.ids_BT).all()


def test_documents_end_in_one_end_of_text_and_dialogues_take_the_chat_template(tokenizer):
    ask = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
    counts: Counter = Counter()
    plain, chat = corpus.encode_documents(tokenizer, ["A fox slept.", ask], 256, "raise", counts)
    for ids in (plain, chat):
        assert ids.count(tokenizer.eos_token_id) == 1
        assert ids[-1] == tokenizer.eos_token_id
    assert chat == data.encode_dialogue(tokenizer, ask[:1], "Because.").ids, "as SFT and serving encode it"


def test_a_document_longer_than_a_row_raises_or_is_dropped_and_counted(tokenizer, tmp_path):
    counts: Counter = Counter()
    with pytest.raises(data.TooLongError, match=r"^document 2: .* raise row_tokens or set on_too_long to drop"):
        corpus.encode_documents(tokenizer, ["A", "A fox. " * 30], 20, "raise", counts)
    (tmp_path / "chat.jsonl").write_text('"A"\n\n"A fox."\n')
    beside = {"path": str(tmp_path / "chat.jsonl"), "prefix": "ptx_"}
    with pytest.raises(data.TooLongError, match=r"chat\.jsonl line 3: \d+ tokens, .* 20; raise ptx_row_tokens or set"):
        corpus.encode_documents(tokenizer, ["A", "A fox. " * 30], 20, "raise", counts, **beside)
    assert len(corpus.encode_documents(tokenizer, ["A", "A fox. " * 30], 20, "drop", counts)) == 1
    assert len(corpus.encode_documents(tokenizer, ["A", "A fox. " * 30], 20, "drop", counts, **beside)) == 1
    assert counts == {"dropped_too_long": 1, "text_dropped_too_long": 1}


def test_a_file_is_read_and_one_with_too_little_text_is_refused(tokenizer, tmp_path):
    file = tmp_path / "text.jsonl"
    file.write_text("".join(json.dumps({"text": f"The fox number {i}."}) + "\n" for i in range(6)))
    text = corpus.load(tokenizer, str(file), row_tokens=32, valid_documents=2)
    assert text.documents == 6
    too_few = r"text\.jsonl: 6 documents of text, of which 6 are held out: none to train on; lower ptx_valid_documents"
    with pytest.raises(StageError, match=too_few):
        corpus.load(tokenizer, str(file), row_tokens=32, valid_documents=6, prefix="ptx_")
    file.write_text(json.dumps({"text": tokenizer.eos_token}) + "\n" + file.read_text())
    with pytest.raises(
        StageError, match=r"text\.jsonl: the 1 documents held out \(valid_documents\) .* nothing to predict"
    ):
        corpus.load(tokenizer, str(file), row_tokens=32, valid_documents=1)
    assert corpus.load(tokenizer, str(file), row_tokens=32, valid_documents=2).documents == 7


def test_held_out_loss_is_the_mean_over_tokens_however_the_rows_are_batched(policy, tokenizer):
    text = corpus.load(tokenizer, None, row_tokens=256, valid_documents=12, documents=8)
    whole = corpus.mean_loss(policy, text.valid, 100, "cpu")
    assert corpus.mean_loss(policy, text.valid, 1, "cpu") == pytest.approx(whole, rel=1e-5)
    total, tokens = corpus.loss_sum(policy, text.valid, range(len(text.valid.ids_BT)), "cpu")
    assert total.item() / tokens == pytest.approx(whole, rel=1e-5)
