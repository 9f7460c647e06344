"""Data sets of known shape as rows of Heed's own fields, and what to say of a shape that is not known.

A format takes (place, row) and yields (place, row). What it leaves out it counts, by reason; what it cannot read it reports.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from labeling.models.responses import text_digest

if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise

Row = dict[str, Any]
Rows = Iterable[tuple[str, Row]]
Report = Callable[[str, str], None]
"""Takes (place, message) of something wrong; reading goes on where it can."""
LeaveOut = Callable[[str], None]
"""Takes why a row, or a part of one, does not come in."""
Format = Callable[[Rows, bool, Report, LeaveOut], Iterator[tuple[str, Row]]]
"""Rows, whether responses are wanted (else prompts and demonstrations), and whom to tell."""


def of_field(place: str, name: str) -> str:
    """A field of a row, as a place."""
    return _("%(place)s: field %(field)s") % {"place": place, "field": name}


# ---- Self-Instruct --------------------------------------------------------------------------------------------------


def self_instruct(rows: Rows, with_responses: bool, report: Report, leave_out: LeaveOut) -> Iterator[tuple[str, Row]]:
    """The Self-Instruct seed tasks: {id, instruction, instances: [{input, output}]} as prompts with demonstrations."""
    for place, row in rows:
        instances = row.get("instances")
        if not isinstance(row.get("instruction"), str):
            report(of_field(place, "instruction"), _("missing, or not a text"))
        elif not isinstance(instances, list) or not all(isinstance(instance, dict) for instance in instances):
            report(of_field(place, "instances"), _("missing, or not a list of objects"))
        else:
            for number, instance in enumerate(instances):
                yield place, _self_instruct_row(row, instance, number)


def _self_instruct_row(row: Row, instance: Row, number: int) -> Row:
    given = instance.get("input") or ""
    found: Row = {
        "prompt": f"{row['instruction']}\n\n{given}" if given else row["instruction"],
        "demonstration": instance.get("output"),
        "metadata": {"name": row["name"]} if "name" in row else {},
    }
    if "id" in row:
        found["external_id"] = str(row["id"]) if number == 0 else f"{row['id']}#{number + 1}"
    if row.get("is_classification") is True:
        found["use_case"] = "classification"
    return found


# ---- HH-RLHF and other pairs ----------------------------------------------------------------------------------------

TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):[ ]?")
SPEAKERS = {"Human": "user", "Assistant": "assistant"}
HH_MODEL = "hh-rlhf"


def hh_rlhf(rows: Rows, with_responses: bool, report: Report, leave_out: LeaveOut) -> Iterator[tuple[str, Row]]:
    """Pairs {chosen, rejected} of whole conversations, or of answers to a `prompt`: a prompt with two responses.

    A conversation is HH-RLHF's text ("\\n\\nHuman: …\\n\\nAssistant: …") or a list of messages. The responses are those of
    one outside model, hh-rlhf; equal ones are one. Which was chosen does not come in: it is nobody's label here.
    """
    for place, row in rows:
        wrong = [name for name in ("chosen", "rejected") if not isinstance(row.get(name), str | list)]
        for name in wrong:
            report(of_field(place, name), _("missing, or neither a conversation nor an answer"))
        if wrong:
            continue
        pair = [_conversation(row.get("prompt"), row[name]) for name in ("chosen", "rejected")]
        if reason := _why_no_pair(*pair):
            leave_out(reason)
        elif with_responses:
            texts = dict.fromkeys(turns[-1]["content"] for turns in pair)
            yield place, {"messages": pair[0][:-1], "responses": [_pair_response(text) for text in texts]}
        else:
            leave_out("responses")
            yield place, {"messages": pair[0][:-1]}


def _pair_response(text: str) -> Row:
    """Known by its text: the same answer in several pairs of a prompt is one response."""
    return {"model": HH_MODEL, "text": text, "external_id": f"pair:{text_digest(text)[:40]}"}


def _conversation(prompt: Any, given: Any) -> list[Row]:
    """The messages of one side of a pair; empty when it is no conversation."""
    before = _turns(prompt) if prompt is not None else []
    if isinstance(given, str) and before:
        found = _turns(given) if TURN.match(given) else [{"role": "assistant", "content": given}]
    else:
        found = _turns(given)
    return found if found[: len(before)] == before else before + found


def _turns(given: Any) -> list[Row]:
    if isinstance(given, str):
        parts = TURN.split(given)
        if len(parts) == 1:
            return [{"role": "user", "content": given}]
        return [
            {"role": SPEAKERS[who], "content": said.strip()} for who, said in zip(parts[1::2], parts[2::2], strict=True)
        ]
    if isinstance(given, list) and all(isinstance(one, dict) and {"role", "content"} <= one.keys() for one in given):
        return [{"role": one["role"], "content": one["content"]} for one in given]
    return []


def _why_no_pair(chosen: list[Row], rejected: list[Row]) -> str:
    if chosen[:-1] != rejected[:-1]:
        return "pairs_without_a_common_prompt"
    if len(chosen) < 2 or any(turns[-1]["role"] != "assistant" for turns in (chosen, rejected)):
        return "pairs_that_end_without_an_answer"
    said = [turn["content"] for turn in [*chosen, rejected[-1]]]
    if not all(isinstance(text, str) and text.strip() for text in said) or chosen[-2]["role"] != "user":
        return "pairs_with_an_empty_turn"
    return ""


# ---- Open-Assistant -------------------------------------------------------------------------------------------------

OASST_ROLES = {"prompter": "user", "assistant": "assistant"}
OASST_MODEL = "oasst"


def oasst(rows: Rows, with_responses: bool, report: Report, leave_out: LeaveOut) -> Iterator[tuple[str, Row]]:
    """Open-Assistant's message trees, or their messages one by one: each turn of a prompter, with all before it, is a prompt; the
    replies answer it.

    As prompts, the reply that the volunteers ranked first (or the only one) is its demonstration. As responses, all
    replies are those of an outside model, oasst or the one they name. Deleted messages and ranks stay out.
    """
    for place, row in _trees(rows, report):
        if not isinstance(row.get("prompt"), dict):
            said = _("missing, or no message: expected a tree {message_tree_id, prompt: {text, role, replies}}")
            report(of_field(place, "prompt"), said)
            continue
        waiting: list[tuple[Row, list[Row]]] = [(row["prompt"], [])]
        while waiting:
            node, before = waiting.pop()
            if node.get("deleted") is True:
                leave_out("deleted_messages")
                continue
            if node.get("role") not in OASST_ROLES or not isinstance(node.get("text"), str):
                said = _("expected messages with a text, and a role: prompter or assistant (message %s)")
                report(of_field(place, "prompt"), said % node.get("message_id"))
                continue
            path = [*before, {"role": OASST_ROLES[node["role"]], "content": node["text"]}]
            replies = [one for one in node.get("replies") or [] if isinstance(one, dict)]
            waiting.extend((one, path) for one in reversed(replies))
            if node["role"] == "prompter":
                yield from _oasst_prompt(place, node, path, replies, with_responses, leave_out)


def _trees(rows: Rows, report: Report) -> Iterator[tuple[str, Row]]:
    """The rows; messages that come one by one, each after the one it replies to, as trees: one tree is held in memory."""
    tree: tuple[str, Row] | None = None
    nodes: dict[Any, Row] = {}  # of that tree, by id
    for place, row in rows:
        if "prompt" in row or not isinstance(row.get("message_id"), str):
            yield place, row
            continue
        node, parent = row | {"replies": []}, row.get("parent_id")
        if parent is None:
            if tree:
                yield tree
            tree, nodes = (place, {"prompt": node}), {}
        elif isinstance(parent, str) and parent in nodes:
            nodes[parent]["replies"].append(node)
        else:
            said = _("message %s is not among the rows before this one since the last that replies to none")
            report(of_field(place, "parent_id"), said % str(parent)[:100])
            continue
        nodes[row["message_id"]] = node
    if tree:
        yield tree


def _oasst_prompt(
    place: str, node: Row, path: list[Row], replies: list[Row], with_responses: bool, leave_out: LeaveOut
) -> Iterator[tuple[str, Row]]:
    found: Row = {"messages": path, "external_id": node.get("message_id")}
    found |= {"metadata": {"lang": node["lang"]}} if "lang" in node else {}
    found |= {"author": f"oasst:{node['user_id']}"} if node.get("user_id") else {}
    usable = [one for one in replies if one.get("deleted") is not True and isinstance(one.get("text"), str)]
    if with_responses and usable:
        yield place, found | {"responses": [_oasst_response(one) for one in usable]}
    elif with_responses:
        leave_out("prompts_without_replies")
    else:
        best = [one for one in usable if one.get("rank") == 0 or len(usable) == 1]
        for _left in range(len(usable) - len(best[:1])):
            leave_out("replies_not_ranked_first")
        yield place, found | ({"demonstration": best[0]["text"]} if best else {})


def _oasst_response(reply: Row) -> Row:
    return {
        "model": reply.get("model_name") or OASST_MODEL,
        "text": reply["text"],
        "external_id": reply.get("message_id"),
    }


NAMED: dict[str, Format] = {"self_instruct": self_instruct, "hh-rlhf": hh_rlhf, "oasst": oasst}


# ---- shapes that are not known --------------------------------------------------------------------------------------

# Columns, the one that the message is about, and what to do about them; the first whose columns are all there is told.
SHAPES: tuple[tuple[set[str], str, "StrOrPromise"], ...] = (
    (
        {"instruction", "instances"}, "instances",
        gettext_lazy(
            "these are Self-Instruct tasks (instruction, instances): import them as prompts in the format self_instruct, in the "
            "console or with `import_prompts --format self_instruct`; or map their columns. The API takes rows in Heed's own fields"
        ),
    ),
    (
        {"chosen", "rejected"}, "chosen",
        gettext_lazy(
            "these are pairs (chosen, rejected): import them in the format hh-rlhf, in the console or with `--format hh-rlhf`. "
            "The API takes rows in Heed's own fields"
        ),
    ),
    (
        {"message_tree_id", "prompt"}, "message_tree_id",
        gettext_lazy(
            "these are Open-Assistant's trees: import them in the format oasst, in the console or with `--format oasst`. "
            "The API takes rows in Heed's own fields"
        ),
    ),
    (
        {"message_id", "text", "role"}, "message_id",
        gettext_lazy(
            "these are Open-Assistant's messages one by one: import them in the format oasst, in the console or with `--format oasst`. "
            "The API takes rows in Heed's own fields"
        ),
    ),
    (
        {"instruction", "output"}, "output",
        gettext_lazy(
            "no format, but columns fit: as prompts with `--template 'prompt={instruction}' --map demonstration=output` "
            "(and {input} in the template, where there is such a column)"
        ),
    ),
    (
        {"conversations"}, "conversations",
        gettext_lazy(
            "conversations of this shape are not read: make them prompt or messages, and demonstration or model and response"
        ),
    ),
    (
        {"question", "answer"}, "question",
        gettext_lazy("no format, but columns fit: `--map prompt=question --map demonstration=answer`"),
    ),
    (
        {"prompt", "completion"}, "completion",
        gettext_lazy("no format, but columns fit: `--map prompt=prompt --map demonstration=completion`"),
    ),
)  # fmt: skip


def what_fits(columns: Iterable[str]) -> tuple[str, str] | None:
    """(the column it is about, advice) for a shape that people are known to bring; None for any other."""
    there = set(columns)
    return next(((about, str(advice)) for needed, about, advice in SHAPES if needed <= there), None)
