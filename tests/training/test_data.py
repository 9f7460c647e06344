"""Text to tokens: EOS is trained, serving ids are training ids, lengths by count, held-out labels stay out."""

import itertools
from collections import Counter

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from training import data, models, response_loss
from training.contract import read_export
from training.errors import StageError

ASK = [{"role": "user", "content": "Write a story about a fox."}]
UNLIMITED = data.LengthLimits(10_000, 10_000)


def test_eos_is_trained_even_where_pad_is_the_same_token(tokenizer):
    short = data.encode_dialogue(tokenizer, ASK, "A fox.")
    long = data.encode_dialogue(tokenizer, ASK, "A fox went to the garden and slept well.")
    batch = data.collate([short, long], pad_id=tokenizer.eos_token_id)
    last = len(short.ids) - 1
    assert batch.ids_BT[0, last] == tokenizer.eos_token_id
    assert batch.loss_BT[0, last], "the EOS label must be trained"
    assert not batch.loss_BT[0, last + 1 :].any(), "padding must not be"
    assert batch.loss_BT.sum() == short.response_tokens + long.response_tokens


def test_a_model_trained_with_pad_equal_to_eos_stops(tokenizer):
    """Overfit one answer beside a much longer one: it must end by itself, at its own length."""
    torch.manual_seed(0)
    model = models.new_model(tokenizer, width=32, layers=1, heads=2, mlp_width=64, max_tokens=128, init_std=0.1)
    ask_two = [{"role": "user", "content": "Which color?"}]
    examples = [data.encode_dialogue(tokenizer, ASK, "A fox."), data.encode_dialogue(tokenizer, ask_two, "Red. " * 8)]
    adam = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        response_loss.backward_mean(model, examples, 1, tokenizer.eos_token_id, torch.device("cpu"))
        adam.step()
        adam.zero_grad()
    from training.generation import sample_texts

    prompt = data.encode_prompt(tokenizer, ASK)
    texts, reasons = sample_texts(model, tokenizer, [prompt], max_new_tokens=40, temperature=0.0, seed=0)
    assert (texts, reasons) == (["A fox."], ["stop"])


def test_training_ids_begin_with_the_serving_ids(tokenizer):
    serving = tokenizer.apply_chat_template(ASK, add_generation_prompt=True, return_dict=False)
    example = data.encode_dialogue(tokenizer, ASK, "A fox.")
    assert example.ids[: example.prompt_tokens] == serving
    rendered = tokenizer.apply_chat_template([*ASK, {"role": "assistant", "content": "A fox."}], return_dict=False)
    assert example.ids == rendered, "a whole dialogue, as pretraining renders it, has the same ids"


def test_a_tokenizer_that_adds_bos_adds_it_to_no_response_and_not_twice(tokenizer, base):
    eager = models.load_tokenizer(base)
    bos = eager.convert_tokens_to_ids("<|system|>")
    eager.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|system|> $A", special_tokens=[("<|system|>", bos)]
    )
    assert eager("x")["input_ids"][0] == bos, "the test's tokenizer does add one"
    assert data.encode_dialogue(eager, ASK, "A fox.").ids == data.encode_dialogue(tokenizer, ASK, "A fox.").ids


def test_a_response_cut_off_by_length_carries_no_eos(tokenizer):
    cut = data.encode_response(tokenizer, "A fox", finished=False)
    assert tokenizer.eos_token_id not in cut
    assert data.encode_response(tokenizer, "A fox") == [*cut, tokenizer.eos_token_id]


def test_a_ranked_response_carries_eos_unless_its_sampler_cut_it_off(tokenizer, export):
    reasons = set()
    for row in read_export(export).rankings():
        examples = data.encode_ranking(tokenizer, row, row.rankings[0]).examples
        for response, example in zip(row.responses, examples, strict=True):
            assert (example.ids[-1] == tokenizer.eos_token_id) == (response.finish_reason == "stop")
            reasons.add(response.finish_reason)
    assert reasons == {"stop", "length"}


def test_over_long_records_raise_by_default_and_name_the_place(tokenizer, export):
    rows = data.read_demonstrations(read_export(export), "train", Counter())
    with pytest.raises(data.TooLongError, match=f"demonstration {rows[0].demonstration_id}"):
        data.encode_demonstrations(tokenizer, rows, data.LengthLimits(5, 200), Counter())


def test_over_long_records_are_dropped_by_choice_and_counted(tokenizer, export):
    rows = data.read_demonstrations(read_export(export), "train", Counter())
    lengths = sorted(e.response_tokens for e in data.encode_demonstrations(tokenizer, rows, UNLIMITED, Counter()))
    counts: Counter = Counter()
    limits = data.LengthLimits(10_000, lengths[10], "drop")
    kept = data.encode_demonstrations(tokenizer, rows, limits, counts)
    assert max(e.response_tokens for e in kept) <= lengths[10]
    assert counts["dropped_too_long"] == len(rows) - len(kept) > 0


def test_held_out_labels_are_counted_and_never_trained_on(tokenizer, export):
    opened = read_export(export)
    held_out = [row for row in opened.rankings() if row.labeler_group == "held_out"]
    assert held_out, "the export holds one"
    counts: Counter = Counter()
    train = data.read_comparisons(opened, tokenizer, "train", UNLIMITED, counts, for_training=True)
    assert counts["skipped_held_out"] == len(held_out)
    assert {comparison.group for comparison in train} == {"training"}
    seen = data.read_comparisons(opened, tokenizer, "train", UNLIMITED, Counter(), for_training=False)
    assert len(seen) == len(train) + len(held_out)


@pytest.mark.parametrize(
    ("review", "is_surplus", "counted"),
    [
        ("rejected", False, "skipped_not_accepted"),
        ("returned", False, "skipped_not_accepted"),
        ("accepted", True, "skipped_surplus"),
    ],
)
def test_rejected_returned_and_surplus_labels_are_counted_and_left_out(export, review, is_surplus, counted):
    from msgspec.structs import replace

    row = replace(next(read_export(export).demonstrations()), review=review, is_surplus=is_surplus)
    counts: Counter = Counter()
    assert not data.is_trainable(row, "training", counts)
    assert counts == {counted: 1}


def test_tiers_give_all_pairs_but_ties():
    assert data.pairs_of([[2], [0, 1], [3]]) == [(2, 0), (2, 1), (2, 3), (0, 3), (1, 3)]
    assert data.ties_of([[2, 4, 5], [0, 1], [3]]) == [(2, 4), (2, 5), (4, 5), (0, 1)]


def test_rankings_that_are_all_tied_train_only_where_ties_count(tokenizer, export):
    from msgspec.structs import replace

    opened = read_export(export)
    rows = [row for row in opened.rankings() if row.split == "train" and row.labeler_group == "training"][:3]
    tied = replace(rows[0].rankings[0], tiers=[[response.response_id for response in rows[0].responses]])
    rows[0] = replace(rows[0], rankings=[tied])
    opened.rankings = lambda: iter(rows)
    for with_all_tied, kept in ((False, 2), (True, 3)):
        counts: Counter = Counter()
        found = data.read_comparisons(
            opened, tokenizer, "train", UNLIMITED, counts, for_training=True, with_all_tied=with_all_tied
        )
        assert (len(found), counts["skipped_all_tied"]) == (kept, 3 - kept)
    assert found[0].pairs == []
    assert len(found[0].ties) == found[0].pair_count


def test_batches_are_a_function_of_the_seed_and_visit_everything_once_per_epoch():
    first = list(itertools.islice(data.shuffled_batches(10, 4, seed=1), 5))
    again = list(itertools.islice(data.shuffled_batches(10, 4, seed=1), 5))
    flat = [i for batch in first for i in batch]
    assert first == again
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert flat[:10] != flat[10:], "each epoch has an order of its own"


def padded(groups, lengths):
    return sum(len(group) * max(lengths[i] for i in group) for group in groups)


@pytest.mark.parametrize(
    ("count", "epochs", "batch", "steps", "facts"),
    [
        (10, 1, 4, 2, {"skipped_incomplete_batch": 2}),
        (10, 2, 4, 5, {}),
        (3, 1, 3, 1, {}),
        (3, 1, 4, 1, {"batch_size_lowered_to": 3}),
        (3, 5, 4, 5, {"batch_size_lowered_to": 3}),
        (600, 1, 64, 9, {"skipped_incomplete_batch": 24}),
    ],
)
def test_what_the_last_batch_leaves_over_and_a_batch_larger_than_the_data_are_told(count, epochs, batch, steps, facts):
    assert (data.optimizer_steps(count, epochs, batch), data.batch_facts(count, epochs, batch)) == (steps, facts)


def test_groups_of_like_length_hold_every_row_once_and_pad_less():
    lengths = [5, 90, 7, 6, 88, 91, 30, 31]
    for parts in (0, 1, 3, 8):
        groups = data.length_groups(lengths, parts, part_cost=10)
        assert sorted(i for group in groups for i in group) == list(range(8))
        assert len(groups) == parts or not parts
    assert [sorted(group) for group in data.length_groups(lengths, 0, part_cost=10)] == [[1, 4, 5], [6, 7], [0, 2, 3]]
    assert len(data.length_groups(lengths, 0, part_cost=1000)) == 1, "where a pass costs more than padding"
    many = [i % 97 + 1 for i in range(500)]
    assert padded(data.length_groups(many, 0, part_cost=10), many) < 0.6 * 97 * 500


def test_an_empty_selection_is_an_error():
    with pytest.raises(StageError, match="nothing to train on"):
        next(data.shuffled_batches(0, 4, seed=1))
