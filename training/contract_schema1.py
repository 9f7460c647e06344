"""Exports of schema 1, read as those of schema 2. There a label's `revisions` ended with the label as it is, which stood there twice,
and flags were lists of `{name, value}`."""

from typing import Any

import msgspec

from training.contract import DEMONSTRATIONS, RANKINGS, ContractError, Flags, Kind


def upgrade(kind: Kind[Any], line: bytes, place: str) -> bytes:
    """A canonical line of schema 1 as one of schema 2.

    Raises ContractError where it is not canonical, or its last revision not the label's own. What else may be wrong with it the
    reader of schema 2 says.
    """
    try:
        row = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ContractError(f"{place}: {error}") from None
    if msgspec.json.encode(row) + b"\n" != line:
        raise ContractError(f"{place}: not in canonical form (spaces, repeated keys or a missing newline)")
    if kind == DEMONSTRATIONS:
        row = _without_last(row, place)
    elif kind == RANKINGS and isinstance(row, dict) and isinstance(row.get("rankings"), list):
        row["rankings"] = [_with_flags_by_answer(_without_last(ranking, place), place) for ranking in row["rankings"]]
    return msgspec.json.encode(row) + b"\n"


def _without_last(label: Any, place: str) -> Any:
    """The label with `earlier_revisions` in the place of `revisions`."""
    revisions = label.get("revisions") if isinstance(label, dict) else None
    if not isinstance(revisions, list):
        raise ContractError(f"{place}: field revisions: missing, or no list")
    last = revisions[-1] if revisions and isinstance(revisions[-1], dict) else {"revision": None}
    if any(label.get(name) != value for name, value in last.items()):
        raise ContractError(f"{place}: field revisions: the last one differs from the label")
    earlier = {"revisions": ("earlier_revisions", revisions[:-1])}
    return dict(earlier.get(name, (name, value)) for name, value in label.items())


def _with_flags_by_answer(said: Any, place: str) -> Any:
    """A ranking, a revision or a rating with its flags as schema 2 has them. What else it holds stays, to be refused."""
    if not isinstance(said, dict):
        return said
    changed = dict(said)
    for name in ("flags", "prompt_flags"):
        if name in changed:
            changed[name] = _by_answer(changed[name], f"{place}: field {name}")
    for name in ("ratings", "earlier_revisions"):
        if isinstance(changed.get(name), list):
            changed[name] = [_with_flags_by_answer(one, place) for one in changed[name]]
    return changed


def _by_answer(flags: Any, place: str) -> Flags:
    try:
        given = msgspec.convert(flags, list[_Flag])
    except msgspec.ValidationError as error:
        raise ContractError(f"{place}: {error}") from None
    return Flags.of((flag.name, flag.value) for flag in given)


class _Flag(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    value: bool | None
