"""The two halves meet in the contract alone: read from the sources, so that no lazy import slips through."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HIDDEN_PREFERENCE = "tests"


def imported_modules(file: Path) -> set[str]:
    """Dotted names of everything a file imports, wherever the import stands."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" if node.module else alias.name for alias in node.names}
    return names


def offences(half: str, is_allowed) -> list[str]:
    return [
        f"{file.relative_to(ROOT)}: {name}"
        for file in sorted((ROOT / half).rglob("*.py"))
        for name in sorted(imported_modules(file))
        if not is_allowed(name)
    ]


def test_training_imports_neither_django_nor_labeling_nor_the_hidden_preference():
    banned = {"django", "rest_framework", "procrastinate", "labeling", HIDDEN_PREFERENCE}
    assert offences("training", lambda name: name.split(".")[0] not in banned) == []


def test_labeling_imports_only_the_contract_from_training():
    def allowed(name):
        return name.split(".")[0] != "training" or name.startswith("training.contract")

    # The demo's first prompts come from the tiny world, which needs neither torch nor Django.
    seeding = "labeling/management/commands/seed_demo.py: training.tinyworld"
    assert [o for o in offences("labeling", allowed) if not o.startswith(seeding)] == []


@pytest.mark.parametrize("banned", ["torch", "transformers", "django"])
def test_the_contract_loads_without(banned):
    code = f"import sys; sys.modules[{banned!r}] = None; import training.contract; print('ok')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "ok"), done.stderr


def test_the_web_half_starts_without_what_only_its_jobs_need():
    """Each of these takes a second or more of every command and of every web process's start."""
    heavy = ("torch", "pandas", "scipy.stats")
    code = f"import sys, django; django.setup(); import labeling.urls; print([m for m in {heavy} if m in sys.modules])"
    environment = os.environ | {"DJANGO_SETTINGS_MODULE": "tests.settings"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
