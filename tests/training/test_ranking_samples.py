"""The rankings of a reward model's report: which are chosen, what is said of each, and how the page says it."""

from training.data import Comparison, Example, pairs_of
from training.ranking_samples import ranking_samples
from training.report import RankingSample, ScoredResponse, write_report

FACTS = {"name": "rm-1", "stage": "rm", "parents": {}, "export": None, "code_version": "abc", "created_at": "now"}


class Words:
    """A tokenizer whose words are numbers."""

    def batch_decode(self, rows, skip_special_tokens):
        assert skip_special_tokens
        return [" ".join(map(str, row)) for row in rows]


def comparison(tiers, prompt=7):
    k = sum(map(len, tiers))
    return Comparison(
        [Example([prompt, i], 1) for i in range(k)], pairs_of(tiers), k * (k - 1) // 2, [None] * k, "", None
    )


def test_the_first_are_shown_and_then_the_worst_ordered():
    rankings = [comparison([[0], [1], [2]], prompt=number) for number in range(6)]
    right, one_wrong, all_wrong = [3.0, 2.0, 1.0], [2.0, 3.0, 1.0], [1.0, 2.0, 3.0]
    after = [all_wrong, right, right, one_wrong, all_wrong, all_wrong]
    chosen = ranking_samples(Words(), rankings, [right] * 6, after, count=4)
    assert [sample.prompt for sample in chosen] == ["0", "1", "4", "5"]
    chosen = ranking_samples(Words(), rankings, [right] * 6, [*[right] * 3, one_wrong, right, right], count=4)
    assert [sample.prompt for sample in chosen] == ["0", "1", "3"], "none that the model orders as the labeler did"
    assert ranking_samples(Words(), [], [], []) == []


def test_a_ranking_is_told_by_hand():
    [sample] = ranking_samples(Words(), [comparison([[2], [0, 1]])], [[1.0, 0.0, 0.5]], [[1.0, 2.0, 2.0]])
    assert sample == RankingSample(
        prompt="7",
        responses=[
            ScoredResponse("2", 1, 0.5, 2.0),
            ScoredResponse("0", 2, 1.0, 1.0),
            ScoredResponse("1", 2, 0.0, 2.0),
        ],
        pairs=2,
        right_before=1,
        right_after=1,  # equal rewards are no order
    )


def test_the_page_shows_rank_rewards_and_places(tmp_path):
    responses = [ScoredResponse("<b>", 1, -0.12345, 2.5), ScoredResponse("x" * 700 + "\x00", 2, 0.5, 0.25)]
    samples = [RankingSample("Why\x1b?", responses, 1, 0, 1)]
    write_report(tmp_path / "r.html", facts=FACTS, log=[], samples=samples)
    page = (tmp_path / "r.html").read_text()
    assert "<td>1</td><td>-0.123 (2)</td><td>2.5 (1)</td>" in page and "&lt;b&gt;" in page
    assert "<td>2</td><td>0.5 (1)</td><td>0.25 (2)</td>" in page and f">{'x' * 600} …<" in page
    assert "0 of 1 before, 1 of 1 after" in page
    assert "Why␛?" in page, "HTML forbids control characters"
