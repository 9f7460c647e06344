"""What an import read, on its way in: checked rows stream by COPY into a temporary table of the transaction, in flat memory."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec
from django.db import connection

from labeling.actions.import_rows import PromptItem, ResponseItem
from labeling.models.prompts import split_of

# One line per prompt (part 0) and one per response to it (part 1, 2, …), so that one COPY takes both in their order.
# `own_split` is where the prompt goes if nobody says otherwise; `model` counts the models' names from 1.
# Texts are kept as they are (EXTERNAL): compressing them would be done once here and once more where they end.
TABLE = """
DROP TABLE IF EXISTS heed_staged, heed_prompt_of, heed_copy;
CREATE TEMP TABLE heed_staged (
  row bigint, part int, place text,
  prompt_id uuid, messages jsonb, original jsonb, digest text COLLATE "C", external_id text, kind text, use_case text, author text,
  organization text, split text, own_split text, metadata jsonb,
  model int, text text, text_digest text COLLATE "C", finish_reason text, sampling jsonb, response_external_id text
) ON COMMIT DROP;
ALTER TABLE heed_staged ALTER messages SET STORAGE EXTERNAL, ALTER text SET STORAGE EXTERNAL;
"""
PROMPT_COLUMNS = (
    "row, part, place, prompt_id, messages, original, digest, external_id, kind, use_case, author, organization, split, own_split,"
    " metadata, model, text, text_digest, finish_reason, sampling, response_external_id"
)
# Of this column alone: to look at samples of long texts would cost more than to store them.
AFTERWARDS = "ANALYZE heed_staged (part)"
OPTIONAL_FIELDS = ("prompt_id", "external_id", "author", "split")
NOTHING = (None,) * 13
_encode = msgspec.json.Encoder().encode


class Staging:
    """The staged rows: how many there are, whose responses they are, and which optional fields occur.

    `has_several_of_one`: a row holds more than one response of a model, or of people, so that they may be alike.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.models: dict[str, int] = {}
        self.responses: Counter[str] = Counter()
        self.fields: set[str] = set()
        self.has_several_of_one = False

    def fill(self, items: Iterable[tuple[str, PromptItem]]) -> None:
        """COPY all (place, item) into the table, made anew. What the items' reading raises goes through."""
        with connection.cursor() as cursor:
            cursor.execute(TABLE)
            with cursor.copy(f"COPY heed_staged ({PROMPT_COLUMNS}) FROM STDIN") as copy:
                write = copy.write_row
                for place, item in items:
                    self.rows += 1
                    write(self._prompt(place, item))
                    self._note_models(item.responses)
                    for part, response in enumerate(item.responses, start=1):
                        write(self._response(part, response))
            cursor.execute(AFTERWARDS)

    def _prompt(self, place: str, item: PromptItem) -> tuple[Any, ...]:
        for name in OPTIONAL_FIELDS:
            if getattr(item, name) is not None:
                self.fields.add(name)
        return (
            self.rows, 0, place, item.prompt_id, messages_json(item.messages), messages_json(item.original), item.content_sha256,
            item.external_id, item.kind, item.use_case, item.author, item.organization, item.split, own_split(item),
            item.metadata,
            None, None, None, None, None, None,
        )  # fmt: skip

    def _note_models(self, responses: tuple[ResponseItem, ...]) -> None:
        if responses:
            models = [response.model for response in responses]
            self.has_several_of_one |= len(set(models)) < len(models)
            for model in models:
                self.responses["demonstrations" if model is None else "responses"] += 1

    def _response(self, part: int, response: ResponseItem) -> tuple[Any, ...]:
        model = None
        if response.model is not None:
            model = self.models.setdefault(response.model, len(self.models) + 1)
        return (
            self.rows, part, *NOTHING, model, response.text, response.text_sha256, response.finish_reason,
            response.sampling, response.external_id,
        )  # fmt: skip


def messages_json(messages: list[dict[str, str]] | None) -> str | None:
    """Messages as a column of type jsonb takes them; None for none."""
    return _encode(messages).decode() if messages else None


def own_split(item: PromptItem) -> str | None:
    """The split where the prompt goes if nobody says otherwise; None for one that is here already."""
    return None if item.split or not item.messages else split_of(item.author or item.content_sha256)
