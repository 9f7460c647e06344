"""Staged rows into the tables, set by set: authors, prompts, models, responses; equal rows once, in the file's order.

Works on `heed_staged` (import_staging.py) within the caller's transaction. What contradicts the database, or an earlier row,
is reported with its place. What was made so far, by whichever way in, is `Made`.

What is staged is looked up in other tables row by row, by `LATERAL … LIMIT 1`, which no plan turns round. The statistics of a table whose
last import was refused say that it is empty, and a join planned by them compares every row with every other.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from django.db import connection
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop

from labeling.actions.import_formats import of_field
from labeling.actions.import_staging import Staging
from labeling.models import Import, ModelVersion

Report = Callable[[str, str], None]
Progress = Callable[[float], None]
"""Told which share of the work is done, 0 to 1."""
Models = dict[str | None, int | None]
"""Primary keys by the models' names; None by None, for a response that a person wrote."""

SLICE_ROWS = 20_000
MAX_FOUND = 100
WORK_MEM = "64MB"

NEW_AUTHORS = """
INSERT INTO labeling_author (key, organization, split, created_at)
SELECT DISTINCT ON (s.author) s.author, s.organization, coalesce(s.split, s.own_split), %(now)s
  FROM heed_staged s
  LEFT JOIN LATERAL (SELECT id FROM labeling_author WHERE key = s.author LIMIT 1) a ON true
 WHERE s.author IS NOT NULL AND s.messages IS NOT NULL AND a.id IS NULL
 ORDER BY s.author, s.row
ON CONFLICT (key) DO NOTHING
"""

# Each finds (place, values …) of the rows that contradict something, looked for if the column came; (field, message) says what.
CONTRADICTIONS: tuple[tuple[str, str, str, str], ...] = (
    ("author", "split", gettext_noop("author {!r} is in split {}; it never changes"), """
SELECT s.place, s.author, a.split
  FROM heed_staged s CROSS JOIN LATERAL (SELECT split FROM labeling_author WHERE key = s.author LIMIT 1) a
 WHERE s.messages IS NOT NULL AND s.split <> a.split"""),
    ("prompt_id", "prompt_id", gettext_noop("there is no prompt {}"), """
SELECT s.place, s.prompt_id::text
  FROM heed_staged s LEFT JOIN LATERAL (SELECT id FROM labeling_prompt WHERE uuid = s.prompt_id LIMIT 1) p ON true
 WHERE s.prompt_id IS NOT NULL AND p.id IS NULL"""),
    ("prompt_id", "prompt_id", gettext_noop("prompt {} has other messages than this row"), """
SELECT s.place, s.prompt_id::text
  FROM heed_staged s CROSS JOIN LATERAL (SELECT content_sha256 FROM labeling_prompt WHERE uuid = s.prompt_id LIMIT 1) p
 WHERE s.messages IS NOT NULL AND p.content_sha256 <> s.digest"""),
    ("external_id", "external_id", gettext_noop("{!r} names another prompt already"), """
SELECT s.place, s.external_id
  FROM (SELECT row, place, external_id, digest, first_value(digest) OVER (PARTITION BY external_id ORDER BY row) AS first
          FROM heed_staged WHERE external_id IS NOT NULL AND prompt_id IS NULL) s
  LEFT JOIN LATERAL (SELECT content_sha256 FROM labeling_prompt WHERE external_id = s.external_id LIMIT 1) p ON true
 WHERE s.digest <> coalesce(p.content_sha256, s.first)"""),
    ("split", "split", gettext_noop("this prompt is in split {} already; it never changes"), """
SELECT s.place, p.split
  FROM heed_staged s CROSS JOIN LATERAL (SELECT split FROM labeling_prompt WHERE content_sha256 = s.digest LIMIT 1) p
 WHERE s.split <> p.split AND s.prompt_id IS NULL"""),
)  # fmt: skip

# Whether every row brings a prompt that is new, none twice: then none has to be looked for again while it is stored.
ALL_NEW = """
SELECT NOT EXISTS (SELECT FROM heed_staged s
                    CROSS JOIN LATERAL (SELECT FROM labeling_prompt WHERE content_sha256 = s.digest LIMIT 1) p
                    WHERE s.part = 0)
   AND NOT EXISTS (SELECT FROM heed_staged WHERE part = 0 GROUP BY digest HAVING count(*) > 1)
"""

# The rows come in the file's order without being sorted with their texts, nor found by an index: pages are read from the first to the
# last, and LATERAL … LIMIT 1 is no join that could be turned round.
NEW_PROMPTS = """
INSERT INTO labeling_prompt (uuid, messages, content_sha256, kind, source, use_case, author_id, organization, split,
                             external_id, metadata, created_at, original, imported_in_id)
SELECT gen_random_uuid(), s.messages, s.digest, s.kind, 'import', s.use_case, a.id, s.organization,
       coalesce(a.split, s.split, s.own_split), s.external_id, s.metadata, %(now)s, s.original, %(record)s
  FROM heed_staged s
  LEFT JOIN LATERAL (SELECT id, split FROM labeling_author WHERE key = s.author LIMIT 1) a ON true
 WHERE s.ctid >= %(begin)s::tid AND s.ctid < %(end)s::tid AND s.part = 0 AND s.prompt_id IS NULL
"""
UNLESS_PRESENT = "ON CONFLICT (content_sha256) DO NOTHING"

PROMPTS_OF_ROWS = """
CREATE TEMP TABLE heed_prompt_of ON COMMIT DROP AS
SELECT s.row, p.id AS prompt_id
  FROM heed_staged s CROSS JOIN LATERAL (SELECT id FROM labeling_prompt WHERE content_sha256 = s.digest LIMIT 1) p
 WHERE s.part = 0 AND s.prompt_id IS NULL
UNION ALL
SELECT s.row, p.id
  FROM heed_staged s CROSS JOIN LATERAL (SELECT id FROM labeling_prompt WHERE uuid = s.prompt_id LIMIT 1) p;
CREATE INDEX ON heed_prompt_of (row);
ANALYZE heed_prompt_of
"""

PRESENT_PROMPTS = """
SELECT count(DISTINCT o.prompt_id)
  FROM heed_prompt_of o CROSS JOIN LATERAL (SELECT imported_in_id FROM labeling_prompt WHERE id = o.prompt_id LIMIT 1) p
 WHERE p.imported_in_id IS DISTINCT FROM %(record)s
"""

# Which time a text occurs in this import. Its earlier rows, stored directly, may have it too; before now only those are in it.
COPIES = """
CREATE TEMP TABLE heed_copy ON COMMIT DROP AS
WITH unnamed AS (
  SELECT s.row, s.part, o.prompt_id, s.model, s.text_digest
    FROM heed_staged s JOIN heed_prompt_of o USING (row)
   WHERE s.part > 0 AND s.model IS NOT NULL AND s.response_external_id IS NULL
), counted AS (
  SELECT prompt_id, model, text_digest, count(*) AS times FROM unnamed GROUP BY prompt_id, model, text_digest
), several AS (
  SELECT * FROM (
    SELECT c.*, CASE WHEN %(directly)s
                      AND (SELECT imported_in_id FROM labeling_prompt WHERE id = c.prompt_id) = %(record)s
                THEN (SELECT count(*) FROM labeling_response r
                       WHERE r.prompt_id = c.prompt_id AND r.model_version_id = (%(models)s::bigint[])[c.model]
                         AND r.text_sha256 = c.text_digest AND r.external_id LIKE 'text:%%') ELSE 0 END AS before
      FROM counted c) d
   WHERE times > 1 OR before > 0
)
SELECT row, part, before + row_number() OVER (PARTITION BY prompt_id, model, text_digest ORDER BY row, part) AS number
  FROM unnamed JOIN several USING (prompt_id, model, text_digest);
CREATE INDEX ON heed_copy (row, part);
ANALYZE heed_copy
"""

NEW_RESPONSES = """
INSERT INTO labeling_response (uuid, prompt_id, text, text_sha256, origin, model_version_id, sampling, finish_reason,
                               external_id, created_at)
SELECT gen_random_uuid(), o.prompt_id, s.text, s.text_digest, CASE WHEN s.model IS NULL THEN 'person' ELSE 'model' END,
       (%(models)s::bigint[])[s.model], s.sampling, s.finish_reason,
       coalesce(s.response_external_id,
                'text:' || left(s.text_digest, 40) || CASE WHEN s.model IS NULL THEN '' ELSE ':' || {number} END),
       %(now)s
  FROM heed_staged s
 CROSS JOIN LATERAL (SELECT prompt_id FROM heed_prompt_of WHERE row = s.row LIMIT 1) o {copies}
 WHERE s.ctid >= %(begin)s::tid AND s.ctid < %(end)s::tid AND s.part > 0
"""
RESPONSES_ALL_NEW = NEW_RESPONSES.format(number="1", copies="")
ADDED_RESPONSES = """
WITH made AS ({insert} ON CONFLICT (prompt_id, model_version_id, external_id) DO NOTHING RETURNING origin)
SELECT CASE origin WHEN 'person' THEN 'demonstrations' ELSE 'responses' END, count(*) FROM made GROUP BY origin
"""
RESPONSES_UNLESS_PRESENT = ADDED_RESPONSES.format(
    insert=NEW_RESPONSES.format(
        number="coalesce(c.number, 1)",
        copies="LEFT JOIN LATERAL (SELECT number FROM heed_copy WHERE row = s.row AND part = s.part LIMIT 1) c ON true",
    )
)

DROP = "DROP TABLE IF EXISTS heed_staged, heed_prompt_of, heed_copy"


def id_of_text(model: str | None, digest: str, number: int) -> str:
    """What stands for the id of a response that came without one: its text, and which time the text occurs in this import.

    So a repeated file adds nothing, and K samples of which two are alike stay K. Demonstrations of one text are one. NEW_RESPONSES
    makes the same of staged rows, whose number only a query tells.
    """
    return f"text:{digest[:40]}" + ("" if model is None else f":{number}")


class Made:
    """What an import has made so far, by whichever way in: `counts`, and the models it names. All of it is of the time `now`."""

    def __init__(self, record: Import):
        self.record = record
        self.now = timezone.now()
        self.counts: Counter[str] = Counter()
        self._models: Models = {None: None}
        self._new_models: set[str] = set()

    def as_counts(self) -> dict[str, int]:
        """What an Import keeps: what was made and what was here already, of each kind that came."""
        counts = {name: self.counts[name] for name in ("rows", "authors_new", "prompts_new", "prompts_present")}
        counts["models_new"] = len(self._new_models)
        for kind in ("responses", "demonstrations"):
            if f"{kind}_new" in self.counts or f"{kind}_present" in self.counts:
                counts |= {f"{kind}_{what}": self.counts[f"{kind}_{what}"] for what in ("new", "present")}
        return {name: count for name, count in counts.items() if count or name not in ("authors_new", "models_new")}

    def models(self, names: Iterable[str | None]) -> Models:
        """Primary keys by name, of these models at least; a name not known becomes an outside model."""
        wanted = {name for name in set(names) - self._models.keys() if name is not None}
        if wanted:
            self._models |= dict(ModelVersion.objects.filter(name__in=wanted).values_list("name", "id"))
        fields = {"stage": ModelVersion.Stage.EXTERNAL, "registered_by": self.record.created_by}
        for name in sorted(wanted - self._models.keys()):
            # Another may register it in this moment: that must not look as if a prompt were here already.
            version, is_new = ModelVersion.objects.get_or_create(name=name, defaults=fields)
            self._models[name] = version.pk
            if is_new:
                self._new_models.add(name)
        return self._models

    def forget_models(self) -> None:
        """Some may be gone with a savepoint: their rows come again, and they are looked up again."""
        self._models = {None: None}


class Store:
    """Writes what was staged."""

    def __init__(self, staged: Staging, report: Report, progress: Progress, made: Made):
        self.staged, self.report, self.progress, self.made = staged, report, progress, made
        self.is_all_new = False

    def check(self) -> None:
        """Report what contradicts the database as it is. Makes the authors that are new: what they are checked by."""
        self._execute(f"SET LOCAL work_mem = '{WORK_MEM}'; SET LOCAL jit = off")  # compiling costs more than it saves
        if "author" in self.staged.fields and (made := self._execute(NEW_AUTHORS).rowcount):
            self.made.counts["authors_new"] = made
        for column in ("author", "prompt_id", "external_id"):
            self._report(column)

    def check_splits(self) -> None:
        """Report rows that name another split than their prompt has, stored before or by an earlier row."""
        self._report("split")

    def write_prompts(self) -> None:
        """Make the prompts that are new, the first of equal ones."""
        self.is_all_new = "prompt_id" not in self.staged.fields and self._execute(ALL_NEW).fetchone()[0]
        sql = NEW_PROMPTS if self.is_all_new else NEW_PROMPTS + UNLESS_PRESENT
        for part in self._slices(0, 2):
            self.made.counts["prompts_new"] += self._execute(sql, **part).rowcount
        if self.staged.responses or not self.is_all_new:
            self._execute(PROMPTS_OF_ROWS)
        if not self.is_all_new:
            self.made.counts["prompts_present"] = self._execute(PRESENT_PROMPTS).fetchone()[0]

    def write_responses(self) -> None:
        """Make the responses that are new; one with the same prompt, model and external id is the same response."""
        if not self.staged.responses:
            return
        keys = self.made.models(self.staged.models)
        models, made = [keys[name] for name in self.staged.models], self.staged.responses
        if self.is_all_new and not self.staged.has_several_of_one:
            for part in self._slices(1, 2):
                self._execute(RESPONSES_ALL_NEW, models=models, **part)
        else:
            self._execute(COPIES, models=models, directly=self.made.counts["responses_new"] > 0)
            made = Counter()
            for part in self._slices(1, 2):
                found = self._execute(RESPONSES_UNLESS_PRESENT, models=models, **part).fetchall()
                made.update(dict(found))
        for kind, total in self.staged.responses.items():
            self.made.counts[f"{kind}_new"] += made[kind]
            self.made.counts[f"{kind}_present"] += total - made[kind]

    def drop(self) -> None:
        """Take the temporary tables away; the transaction may go on."""
        self._execute(DROP)

    def _slices(self, step: int, of: int) -> Iterator[dict[str, str]]:
        """Ranges of the staged pages, of about SLICE_ROWS rows; between them progress is told."""
        size = "SELECT pg_relation_size('heed_staged') / current_setting('block_size')::int"
        [pages] = self._execute(size).fetchone()
        at_once = max(1, pages * SLICE_ROWS // self.staged.rows)
        for begin in range(0, pages, at_once):
            self.progress((step + begin / pages) / of)
            yield {"begin": f"({begin},0)", "end": f"({begin + at_once},0)"}

    def _report(self, column: str) -> None:
        for _column, field, message, sql in (each for each in CONTRADICTIONS if each[0] == column):
            if column in self.staged.fields:
                for place, *values in self._execute(f"{sql} ORDER BY s.row LIMIT {MAX_FOUND}").fetchall():
                    self.report(of_field(place, field), _(message).format(*values))

    def _execute(self, sql: str, **parameters: Any) -> Any:
        cursor = connection.cursor()
        cursor.execute(sql, {"now": self.made.now, "record": self.made.record.pk, **parameters})
        return cursor
