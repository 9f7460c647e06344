"""A judge: any model behind an OpenAI-compatible server, asked which of two answers to the same request is better.

    judge = Judge(OpenAIServer.connect(url), Kept("out.json.verdicts.jsonl"))
    figures = tally(judge.verdicts(pairs))

Each pair is asked in both orders, at temperature 0. Models prefer the place where an answer stands as well as the answer (Zheng et al.
2023, arXiv 2306.05685, sections 3.3 and 3.4): an answer wins only if it is chosen in both places, everything else is a tie, and how
often the first place was chosen is reported. Every verdict is kept in a file as it comes in: a killed run goes on and asks none again.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tqdm import tqdm

from training import intervals
from training.errors import StageError
from training.openai_server import PARALLEL_REQUESTS, NotACompletion, OpenAIServer
from training.writers import digest

Verdict = Literal["first", "second", "tie"]
PROMPT = Path(__file__).with_name("judge_prompt.txt")
PLACES = ("mark", "conversation", "first", "second")
REMINDER = (
    'Close with a line of its own that reads "Verdict:" and one word: first, second or tie. Nothing else is needed.'
)

_SAID = re.compile(
    r"\bverdict\b\W{0,12}(first|second|tie)\b(?!\s*(?:,|\||/|or)\s*(?:first|second|tie)\b)", re.IGNORECASE
)
_BARE = re.compile(r"\W*(first|second|tie)\W*\Z", re.IGNORECASE)


@dataclass(frozen=True)
class Pair:
    """Two answers to the same messages. `cluster` names what pairs have in common that are no independent evidence."""

    messages: Sequence[dict[str, str]]
    ours: str
    theirs: str
    cluster: str


class Asked(NamedTuple):
    """What a judge said of a pair: with our answer shown first, and with it shown second; None where it gave no verdict.

    `ours_first` "first" and `ours_second` "second" are both for our answer. Equal answers tie and are not asked about.
    """

    ours_first: Verdict | None
    ours_second: Verdict | None
    is_same: bool = False


def parse(text: Any) -> Verdict | None:
    """The verdict that an answer closes with; None for one that gives none, or names several."""
    if not isinstance(text, str):
        return None
    said = _SAID.findall(text) or [word for word in [_BARE.match(text)] if word]
    if not said:
        return None
    word = said[-1] if isinstance(said[-1], str) else said[-1].group(1)
    return word.lower()  # type: ignore[return-value]


class Kept:
    """Verdicts by what was asked, one JSON line each, written and synced as they come in. A torn last line is cut off."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path, self._lock = Path(path), threading.Lock()
        self.verdicts: dict[str, Verdict | None] = {}
        data = self.path.read_bytes() if self.path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                row = json.loads(line)
                self.verdicts[row["asked"]] = row["verdict"]
            except (ValueError, KeyError, TypeError) as error:
                raise StageError(
                    f"{self.path} line {number}: no verdict ({error!r}); remove the file to ask again"
                ) from None

    def add(self, asked: str, verdict: Verdict | None, **more: Any) -> None:
        """Keep a verdict, with whatever may help to look at it later."""
        row = json.dumps({"asked": asked, "verdict": verdict, **more}, ensure_ascii=False) + "\n"
        with self._lock:
            self.verdicts[asked] = verdict
            with self.path.open("ab") as file:
                file.write(row.encode())
                file.flush()
                os.fsync(file.fileno())


class Judge:
    """Asks a server about pairs. `template` has the places {mark}, {conversation}, {first} and {second}; `tries` per question."""

    def __init__(
        self, server: OpenAIServer, kept: Kept, *, template: str | None = None, tries: int = 3, max_tokens: int = 512
    ):
        self.server, self.kept, self.tries, self.max_tokens = server, kept, tries, max_tokens
        self.template = PROMPT.read_text(encoding="utf-8") if template is None else template
        if missing := [name for name in PLACES[1:] if f"{{{name}}}" not in self.template]:
            raise StageError(f"the judge's prompt has no place {{{missing[0]}}}")

    def verdicts(self, pairs: Sequence[Pair]) -> list[Asked]:
        """What the judge says of each pair, both orders. Asks only what is not kept yet; raises ClientError if the server stays away."""
        questions = [
            question
            for pair in pairs
            if pair.ours != pair.theirs
            for question in (self.question(pair, pair.ours, pair.theirs), self.question(pair, pair.theirs, pair.ours))
        ]
        waiting = list({asked: text for asked, text in questions if asked not in self.kept.verdicts}.items())
        with tqdm(total=len(waiting), unit="verdict", desc="judge", disable=None) as bar:
            pool = ThreadPoolExecutor(PARALLEL_REQUESTS)
            try:
                for _ in pool.map(lambda question: self.ask(*question), waiting):
                    bar.update()
            finally:
                pool.shutdown(cancel_futures=True)
        said = iter([self.kept.verdicts[asked] for asked, _ in questions])
        return [
            Asked("tie", "tie", is_same=True) if pair.ours == pair.theirs else Asked(next(said), next(said))
            for pair in pairs
        ]

    def question(self, pair: Pair, first: str, second: str) -> tuple[str, str]:
        """(what identifies the question, the text that asks it). The identity holds the server, its model and the whole text."""
        conversation = "\n\n".join(f"{message['role']}: {message['content']}" for message in pair.messages)
        # A mark that the texts cannot hold by chance, so that none of them can close its own part
        mark = f"<<{digest([conversation, first, second])[:12]}>>"
        places = {"mark": mark, "conversation": conversation, "first": first, "second": second}
        text = re.sub(r"\{(mark|conversation|first|second)\}", lambda place: places[place.group(1)], self.template)
        return digest([self.server.url, self.server.model, self.max_tokens, text]), text

    def ask(self, asked: str, text: str) -> Verdict | None:
        """One question, asked again with a reminder while the answer holds no verdict; kept, whatever came of it."""
        messages = [{"role": "user", "content": text}]
        verdict: Verdict | None = None
        said = ""
        for number in range(1, self.tries + 1):
            said = ""
            with suppress(NotACompletion):
                choices = self.server.complete(
                    {"messages": messages, "n": 1, "temperature": 0, "max_tokens": self.max_tokens, "seed": number}
                )
                said = choices[0].text if choices and isinstance(choices[0].text, str) else ""
            if verdict := parse(said):
                break
            again = [{"role": "assistant", "content": said}] if said else []
            messages = [messages[0], *again, {"role": "user", "content": REMINDER}] if again else messages[:1]
        self.kept.add(asked, verdict, tries=number, said=said)
        return verdict


def point(asked: Asked) -> float | None:
    """1 where our answer was chosen in both places, 0 where theirs was, ½ for everything else; None without two verdicts."""
    if asked.ours_first is None or asked.ours_second is None:
        return None
    if (asked.ours_first, asked.ours_second) == ("first", "second"):
        return 1.0
    return 0.0 if (asked.ours_first, asked.ours_second) == ("second", "first") else 0.5


def first_shown(asked: Asked) -> float | None:
    """How often the answer shown first was chosen, among the choices of this pair that were no ties; None where there are none.

    A judge without a position bias chooses it once in two where it can tell the answers apart: ½.
    """
    choices = [said == "first" for said in (asked.ours_first, asked.ours_second) if said in ("first", "second")]
    return sum(choices) / len(choices) if choices else None


def tally(said: Sequence[Asked], clusters: Sequence[str] | None = None) -> dict[str, Any]:
    """Figures of pairs of one candidate (ours) and one other, by the judge: docs/training.md names them."""
    points = [point(one) for one in said]
    kept = [i for i, value in enumerate(points) if value is not None]
    known = [value for value in points if value is not None]
    won = intervals.share(known, [clusters[i] for i in kept] if clusters else None)
    shown = position_bias(said)
    return {
        "win_rate": won["rate"],
        "low": won["low"],
        "high": won["high"],
        "n": won["n"],
        "wins": known.count(1.0),
        "losses": known.count(0.0),
        "ties": known.count(0.5),
        "no_verdict": len(said) - len(known),
        "same_text": sum(one.is_same for one in said),
        **shown,
    }


def position_bias(said: Sequence[Asked]) -> dict[str, Any]:
    """How often the answer shown first was chosen, with its interval over pairs; what the win rate would be in one order alone."""
    rates = [rate for rate in (first_shown(one) for one in said) if rate is not None]
    shown = intervals.share(rates)
    low, high = shown["low"], shown["high"]
    is_biased = low is not None and high is not None and not low <= 0.5 <= high
    turned = sum((one.ours_first, one.ours_second) in (("first", "first"), ("second", "second")) for one in said)
    return {
        "first_shown_rate": shown["rate"],
        "first_shown_low": low,
        "first_shown_high": high,
        "first_shown_n": shown["n"],
        "position_bias": is_biased,
        "turned_with_order": turned,
        "win_rate_shown_first": _one_order([one.ours_first for one in said], "first"),
        "win_rate_shown_second": _one_order([one.ours_second for one in said], "second"),
    }


def _one_order(verdicts: Sequence[Verdict | None], ours: Verdict) -> float | None:
    points = [0.5 if verdict == "tie" else float(verdict == ours) for verdict in verdicts if verdict is not None]
    return sum(points) / len(points) if points else None
