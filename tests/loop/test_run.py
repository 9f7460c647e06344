"""The loop end to end on a tiny scale, as a command: every step works, and models that learned nothing are refused."""

import json
import subprocess
import sys

import pytest

from tests.loop.site import ROOT

FIELDS = {
    "ok", "seed", "seconds", "counts", "labeler_agreement", "rm", "win_rate_sft_vs_base", "win_rate_vs_sft",
    "win_rate_vs_sft_by_use_case", "gold_reward", "proxy_reward", "kl", "beta", "distinct_responses", "promoted",
    "new_ranking_tasks",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_loop_of_untrained_models_runs_whole_and_promotes_nothing():
    command = [sys.executable, "-m", "tests.loop.run", "--smoke", "--seed", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=380)
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr[-3000:]
    assert "a gate FAILED" in done.stdout
    summary = json.loads((ROOT / "var" / "loop-smoke" / "summary.json").read_text())
    assert set(summary) >= FIELDS
    assert (summary["ok"], summary["promoted"], summary["new_ranking_tasks"]) == (False, None, 0)
    counts = summary["counts"]
    assert (counts["prompts"], counts["demonstrations"], counts["rankings"]) == (400, 44, 16 + 6 + 1 + 4)
    assert (counts["model_versions"], counts["exports"]) == (4, 2)
