"""What a night's candidate is worth to the hidden preference: the loop's own evaluation, run by the nightly command.

Reads $HEED_NIGHT (the folders of the night's models, of what serves and of round 0) and writes $HEED_NIGHT_OUT. Beside it, for the
loop's summary: the whole report with texts, and each prompt's gold score under the candidate, what served, and round 0.
"""

import argparse
import json
import os
from pathlib import Path

from tests.loop import gates, world
from training import cpu
from training.contract import write_atomically

NAME = "hidden preference"
REPORT = "hidden-preference.json"


def main() -> None:
    """Judge the candidate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="the base model's folder")
    parser.add_argument("--seed", type=int, required=True, help="of the loop: the prompts are the same every night")
    parser.add_argument("--prompts", type=int, required=True, help="prompts that no stage has seen")
    parser.add_argument("--agreement", type=float, required=True, help="of the simulated labelers")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    cpu.use(arguments.threads)
    night = Path(os.environ["HEED_NIGHT"])
    facts = json.loads(night.read_bytes())
    folders = {role: Path(facts[role]) for role in ("sft", "rm", "ppo", "serving", "round0")}
    report = world.report(
        arguments.seed,
        arguments.agreement,
        arguments.base,
        folders["sft"],
        folders["rm"],
        folders["ppo"],
        count=arguments.prompts,
        others={"last": folders["serving"], "round0": folders["round0"]},
    )
    scores, cases = report["scores"], report.pop("use_cases")
    report |= {
        "win_rate_vs_last": gates.win_rates(scores["ppo"], scores["last"], cases),
        "win_rate_vs_round0": gates.win_rates(scores["ppo"], scores["round0"], cases),
        "gain_vs_last": gates.paired_difference(scores["ppo"], scores["last"]),
    }
    write_atomically(night.with_name(REPORT), json.dumps(report, indent=1).encode() + b"\n")
    told = {key: value for key, value in report.items() if key not in {"samples", "seed", "scores"}}
    Path(os.environ["HEED_NIGHT_OUT"]).write_text(json.dumps({NAME: {"by": "simulation"} | told}))


if __name__ == "__main__":
    main()
