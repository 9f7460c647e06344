"""The playground's way to the gateway: hand a conversation over, see how far its answer is. Each call takes milliseconds."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx
from django.conf import settings
from django.utils.translation import gettext as _

from labeling.errors import HeedError, Invalid, Unavailable
from labeling.gateway.turns import signed
from labeling.models import User

SECONDS = 5.0  # for the gateway to say anything at all


class Gone(HeedError):
    """The gateway knows nothing of this answer (any more): it was restarted, or nobody looked for long."""

    status = 410
    code = "gone"


@dataclass(frozen=True)
class Progress:
    """An answer as far as it is. `model`: the policy that writes it. `error`: why there will be no more of it."""

    text: str
    model: str
    finish_reason: str
    is_over: bool
    error: str


def begin(*, turn: UUID, messages: list[dict[str, str]], opts_out: bool, by: User) -> None:
    """Have the serving policy answer a conversation. Begun twice under one `turn`, it is answered once.

    Raises Unavailable when the gateway does not answer, Invalid for a conversation that it refuses.
    """
    _tell("begin", {"turn": str(turn), "messages": messages, "opts_out": opts_out}, by)


def read(*, turn: UUID, by: User) -> Progress:
    """How far a person's answer is. Raises Gone, Unavailable."""
    return _progress(_tell("read", {"turn": str(turn)}, by))


def stop(*, turn: UUID, by: User) -> Progress:
    """Leave an answer at what is there. Raises Gone, Unavailable."""
    return _progress(_tell("stop", {"turn": str(turn)}, by))


def _progress(said: dict[str, Any]) -> Progress:
    error = _in_words(said["error"]) if said["error"] else ""
    return Progress(said["text"], said["model"], said["finish_reason"], said["is_over"], error)


def _tell(what: str, message: dict[str, Any], by: User) -> dict[str, Any]:
    body = signed(message | {"person": by.pk})
    try:
        answer = httpx.post(f"{settings.GATEWAY_URL}/playground/{what}", content=body, timeout=SECONDS, trust_env=False)
        said = answer.json()
    except (httpx.HTTPError, ValueError):
        raise Unavailable(_("The playground does not answer just now. Try again in a moment.")) from None
    if answer.is_success:
        return said
    error = said.get("error", {})
    if error.get("code") == "turn_gone":
        raise Gone(_in_words(error))
    raise (Invalid if answer.status_code < 500 else Unavailable)(_in_words(error))


def _in_words(error: dict[str, Any]) -> str:
    """What went wrong, for a person, in their language."""
    said = {
        "no_policy": _("No policy has been promoted yet: there is nobody to answer."),
        "policy_unavailable": _("The model cannot be reached just now. Try again in a moment."),
        "policy_busy": _("The model is busy with other questions. Try again in a moment."),
        "policy_timeout": _("The model took too long. Try again."),
        "rate_limit_exceeded": _("You have asked a lot in the last minute. Wait a moment and try again."),
        "too_many_turns": _(
            "Answers to other questions of yours are still being written. Wait for one to end, or stop it."
        ),
        "turn_gone": _("The answer was lost. Ask for it again."),
        "database_unavailable": _("The playground does not answer just now. Try again in a moment."),
    }
    return said.get(error.get("code") or "", _("The model could not answer this."))
