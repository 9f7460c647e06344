"""The model card: facts, all of them, and nothing else."""

from training.model_card import model_card

FACTS = {
    "name": "ppo-1",
    "stage": "ppo",
    "parents": {
        "policy": {"name": "sft-1", "manifest_sha256": "a" * 64},
        "rm": {"name": "rm-1", "manifest_sha256": "b" * 64},
    },
    "export": {"name": "v0007", "data_sha256": "c" * 64},
    "config": {"kl_coef": 0.02, "note": "a|b\nc"},
    "metrics": {"prompts": 12000, "dropped_too_long": 3, "kl_after": 4.123456, "loss": None},
    "seed": 1,
    "code_version": "abc",
    "libraries": {"torch": "2.11", "tokenizers": None},
}


def test_a_card_says_the_facts():
    card = model_card(FACTS)
    for line in ("# ppo-1", "- policy: `sft-1`, manifest aaaaaaaaaaaa", "- labels: export `v0007`, data cccccccccccc",
                 "| prompts | 12,000 |", "| dropped_too_long | 3 |", "| kl_after | 4.1235 |", "| loss | – |", "| kl_coef | 0.02 |",
                 "| note | a\\|b c |", "Code abc; torch 2.11; seed 1."):  # fmt: skip
        assert line in card.splitlines(), line
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "No licence is recorded" in card and "license:" not in card
    assert model_card(dict(reversed(FACTS.items()))) == card


def test_a_first_model_has_nothing_before_it_and_a_prefix_is_quoted():
    card = model_card(
        FACTS | {"stage": "pretrain", "parents": {}, "export": None, "metrics": {}, "few_shot_prefix": "Q: 1?\nA: 2."}
    )
    assert "Nothing before it" in card and "## Figures" not in card
    assert "    Q: 1?\n    A: 2." in card
