"""What actions refuse with is read in the browser: every sentence of it goes through gettext."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.builders import ROOT

ERRORS = {"Conflict", "Forbidden", "HandedInElsewhere", "Invalid", "NotPrepared", "OtherPerson", "SavedElsewhere"}
ERRORS |= {"Unavailable", "problem"}
# Commands and programs alone are told these; what begins with the name of a field ("priority 7: expected …") is the API's.
FOR_PROGRAMS = {"tokens.py"}
# What an import says of a file: (call, which of its arguments are words).
REPORTS = {"add": 1, "add_once": 1, "complain": 1, "refuse": 1, "report": 1, "ValueError": 0}
OF_A_FIELD = re.compile(r"(--|\{\}: |[a-z][a-z_.]*( \{\})?: |manifest\.json: |Model \{\}: |unknown field: )")
SOURCES = [ROOT / "labeling" / name for name in ("answers.py", "exercise_answers.py")]
SOURCES += [path for path in sorted((ROOT / "labeling" / "actions").glob("*.py")) if path.name not in FOR_PROGRAMS]


def unmarked(source: str) -> Iterator[tuple[int, str]]:
    """(line, text) of words given to an error, or to answers.problem, without a call of `_`."""
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call):
            continue
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        if name in ERRORS:
            said = call.args[:2] if name == "problem" else call.args[:1]
            yield from ((call.lineno, text) for each in said if is_words(text := text_of(each)))
        if name in REPORTS and len(call.args) > REPORTS[name] and is_words(text := text_of(call.args[REPORTS[name]])):
            yield call.lineno, text


def text_of(node: ast.expr) -> str:
    """A string, or an f-string with {} for what is filled in; nothing for anything else."""
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) for part in node.values)
    if isinstance(node, ast.Constant):
        return str(node.value)
    return "{}" if isinstance(node, ast.FormattedValue) else ""


def is_words(text: str) -> bool:
    return bool(re.search(r"[^\W\d_]{2,}", text)) and not OF_A_FIELD.match(text)


def test_the_check_finds_what_is_not_marked():
    source = """
raise Invalid("Bare.")
raise Conflict(f"{who} was faster.")
problems = [problem(_("Reason"), "is missing", "reason")]
raise Forbidden(_("%s is not yours.") % name)
raise Invalid(f"priority {priority}: expected 1 to 9")
raise Invalid(f"{path}: {error}")
raise Invalid(" ".join(found))
report(place, f"{n} cells")
raise ValueError("is empty")
"""
    wrong = [(2, "Bare."), (3, "{} was faster."), (4, "is missing"), (9, "{} cells"), (10, "is empty")]
    assert sorted(unmarked(source)) == wrong


def test_no_error_holds_unmarked_text():
    found = {f"{path.name}:{line}": text for path in SOURCES for line, text in unmarked(Path(path).read_text())}
    assert not found, found
