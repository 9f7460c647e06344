"""Heed's training command: `python -m training STAGE --config FILE.toml --field value`."""

import contextlib
import importlib
import importlib.util
import io
import os
import sys
import time
from collections.abc import Sequence

from training.config import ConfigError, FieldError, from_flags, placed
from training.contract import ContractError
from training.errors import DryRun, StageError

STAGES = {
    "pretrain": "train the tiny base model and its tokenizer from scratch",
    "sft": "fine-tune a base model on an export's demonstrations",
    "rm": "train a reward model on an export's rankings",
    "ppo": "optimise a policy against a reward model",
    "dpo": "optimise a policy on rankings directly, without a reward model",
    "sample": "write K responses per prompt, to be ranked",
    "evaluate": "measure policies and reward models",
    "serve": "serve the promoted policy to people, over HTTP",
    "nightly": "export, train, evaluate, and promote or refuse: the command for cron",
}

KINDS = {
    "evaluate": {
        "by-model": ("model_evaluation", "compare a candidate with others by a reward model, a judge, or both"),
        "by-task": (
            "task_evaluation",
            "perplexity, task accuracy, toxicity, bias probes; what was lost against the base",
        ),
    }
}
"""Stages that have further kinds, named after the stage: by module. Without such a word the stage itself runs."""


WAIT_SECONDS = 5.0
"""How long a process that is not its machine's first keeps an error to itself: a launcher ends it sooner where the first failed too."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one stage. Returns the exit status: 0 well, 1 failed, 2 misused, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    stage, rest = arguments[0], arguments[1:]
    if stage not in STAGES:
        return _complain(f"{stage}: no such stage; choose from {', '.join(built_stages())}", 2)
    if stage not in built_stages():
        return _complain(f"{stage}: not built yet", 2)
    return _run(stage, rest)


def _run(stage: str, arguments: list[str]) -> int:
    name = stage
    if arguments and arguments[0] in KINDS.get(stage, {}):
        kind, *arguments = arguments
        name, stage = KINDS[stage][kind][0], f"{stage} {kind}"
    module = importlib.import_module(f"training.{name}")  # only this one: torch takes seconds to load
    try:
        config = _config(module.Config, arguments, stage)
        result = module.run(config)
    except DryRun as plan:
        if _is_main():
            print(plan)
        return 0
    except FieldError as error:  # one that shows only beside the data
        return _complain(str(placed(error, module.Config, arguments, f"python -m training {stage}")), 2)
    except ConfigError as error:
        return _complain(str(error), 2)
    except (ContractError, StageError, OSError) as error:
        return _complain(f"{stage}: {error}", 1)
    except KeyboardInterrupt:
        return _complain(f"{stage}: interrupted", 130)
    if result is not None and _is_main():
        print(result)
    return 0


def _config(config_type, arguments: list[str], stage: str):
    """The stage's config; what its flags' parser says (usage, help) is said once per machine."""
    if _is_first_here():
        return from_flags(config_type, arguments, f"python -m training {stage}")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return from_flags(config_type, arguments, f"python -m training {stage}")
    except SystemExit as end:
        if end.code:
            _complain(said.getvalue().rstrip(), int(end.code))
        raise


def _is_first_here() -> bool:
    """Whether this is the only process of the run on this machine, or the first of several."""
    return "RANK" not in os.environ or os.environ.get("LOCAL_RANK", "0") == "0"


def _is_main() -> bool:
    from training import processes  # loads torch, as the stage has done by then

    return processes.is_main()


def built_stages() -> list[str]:
    """The stages whose module exists."""
    return [stage for stage in STAGES if importlib.util.find_spec(f"training.{stage}")]


def usage() -> str:
    """What `--help` prints."""
    shown = {stage: STAGES[stage] for stage in built_stages()}
    shown |= {f"{stage} {kind}": text for stage in KINDS for kind, (_, text) in KINDS[stage].items()}
    lines = [f"  {name:<18}{text}" for name, text in sorted(shown.items(), key=lambda item: _place(item[0]))]
    head = "usage: python -m training STAGE [--config FILE.toml] [--field value …]\n\nstages (STAGE --help tells more):"
    return "\n".join([head, *lines])


def _place(name: str) -> int:
    """Kinds stand behind their stage."""
    return list(STAGES).index(name.split()[0])


def _complain(message: str, status: int) -> int:
    """Say it once per machine. What befell a later process alone it says too, when the first has not failed in the meantime."""
    if not _is_first_here():
        time.sleep(WAIT_SECONDS)
        message = f"process {os.environ['RANK']}: {message}"
    print(message, file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
