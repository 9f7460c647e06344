"""What an export selects, and the SQL that reads it: each file's rows in one query, in bytewise order of their ids."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from django.db import connection
from psycopg import ClientCursor

from labeling.models import LabelSchema, Submission

STATES = {
    Submission.Status.SUBMITTED: "unreviewed",
    Submission.Status.ACCEPTED: "accepted",
    Submission.Status.RETURNED: "returned",
    Submission.Status.REJECTED: "rejected",
}


@dataclass(frozen=True)
class Selection:
    """What goes into an export. Empty tuples mean all; but an evaluation's rankings only where `batches` names it.

    `since`, `until`: days (UTC, both included) on which a label was handed in or imported; `schemas`: versions of the label
    schema; `min_agreement`: rankings of tasks whose labelers agree so far at least, 0 to 1. `pairs` adds the rankings as
    pairs, in files of their own.
    """

    batches: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    use_cases: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    origins: tuple[str, ...] = ("import", "person")
    review: tuple[str, ...] = ("accepted", "unreviewed")
    surplus: bool = False
    since: str | None = None
    until: str | None = None
    schemas: tuple[int, ...] = ()
    min_agreement: float | None = None
    pairs: bool = False

    def as_query(self) -> dict[str, Any]:
        """The selection as stored and as written into the manifest: lists sorted, every key named but those of ADDED that are unused."""
        query = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}
        return {name: value for name, value in query.items() if name not in ADDED or value not in (None, [], False)}


ADDED = frozenset(("since", "until", "schemas", "min_agreement", "pairs"))
"""Keys that a query has only where they are used: the same selection as before they existed stays the same query."""


# Conditions take NULL for "all". Everything that is sorted is a UUID, a number or compared by its bytes (COLLATE "C"):
# the same data gives the same bytes under any collation.
PROMPT_CONDITIONS = """
  p.intake = 'open'
  AND (%(splits)s::text[] IS NULL OR p.split = ANY(%(splits)s::text[]))
  AND (%(use_cases)s::text[] IS NULL OR p.use_case = ANY(%(use_cases)s::text[]))
"""
SUBMISSION_CONDITIONS = f"""
  {PROMPT_CONDITIONS}
  AND CASE WHEN %(batches)s::text[] IS NULL THEN b.purpose = 'labeling' ELSE b.name = ANY(%(batches)s::text[]) END
  AND (%(groups)s::text[] IS NULL OR s.labeler_group = ANY(%(groups)s::text[]))
  AND s.origin = ANY(%(origins)s::text[]) AND s.status = ANY(%(statuses)s::text[])
  AND (%(surplus)s OR NOT s.is_surplus) AND NOT s.is_gold AND s.erased_at IS NULL
  AND (%(since)s::date IS NULL OR s.submitted_at >= %(since)s::date::timestamp AT TIME ZONE 'UTC')
  AND (%(until)s::date IS NULL OR s.submitted_at < (%(until)s::date + 1)::timestamp AT TIME ZONE 'UTC')
  AND (%(schemas)s::bigint[] IS NULL OR s.schema_id = ANY(%(schemas)s::bigint[]))
"""

PROMPTS = f"""
SELECT p.uuid::text, p.external_id, p.kind, p.use_case, p.source, p.split, p.organization, p.messages, p.metadata::text,
       a.key AS author_key, a.user_id AS author_user
  FROM labeling_prompt p LEFT JOIN labeling_author a ON a.id = p.author_id
 WHERE {PROMPT_CONDITIONS}
 ORDER BY p.uuid
"""  # noqa: S608 constants alone

# json and not jsonb: what is only to be sent is written once, not parsed, built and written. Arrays and not objects, unsorted, models by
# their keys: names of fields, sorts of a row or two, and a look for the model of each response were a quarter of these queries' time.
# export_rows.py has types for these arrays, in the same order.
REVISIONS = """
  (SELECT json_agg(json_build_array(r.number, r.text, r.tiers, r.all_bad, r.ratings, r.prompt_flags, r.comment, r.created_at))
     FROM labeling_revision r WHERE r.submission_id = s.id)
"""
REVIEWS = """
  (SELECT json_agg(json_build_array(v.created_at, v.id, r.number, v.verdict, v.comment, v.reviewer_id))
     FROM labeling_review v JOIN labeling_revision r ON r.id = v.revision_id WHERE v.submission_id = s.id)
"""

DEMONSTRATIONS = f"""
SELECT s.uuid::text, p.uuid::text AS prompt_id, p.split, p.use_case, p.messages, s.labeler_id, s.labeler_group, s.origin, s.status,
       s.is_surplus, s.schema_id, {REVISIONS}::text AS revisions, {REVIEWS}::text AS reviews
  FROM labeling_submission s
  JOIN labeling_task t ON t.id = s.task_id
  JOIN labeling_batch b ON b.id = t.batch_id
  JOIN labeling_prompt p ON p.id = t.prompt_id
 WHERE s.kind = 'demonstration' AND {SUBMISSION_CONDITIONS}
 ORDER BY s.uuid
"""  # noqa: S608 constants alone

# An import belongs to no batch and was made under no label schema: naming either leaves imported demonstrations out.
IMPORTED = f"""
SELECT r.uuid::text, p.uuid::text AS prompt_id, p.split, p.use_case, p.messages, r.text, r.created_at
  FROM labeling_response r JOIN labeling_prompt p ON p.id = r.prompt_id
 WHERE r.origin = 'person' AND 'import' = ANY(%(origins)s::text[]) AND %(batches)s::text[] IS NULL AND %(schemas)s::bigint[] IS NULL
   AND (%(since)s::date IS NULL OR r.created_at >= %(since)s::date::timestamp AT TIME ZONE 'UTC')
   AND (%(until)s::date IS NULL OR r.created_at < (%(until)s::date + 1)::timestamp AT TIME ZONE 'UTC')
   AND (%(groups)s::text[] IS NULL OR 'training' = ANY(%(groups)s::text[])) AND {PROMPT_CONDITIONS}
 ORDER BY r.uuid
"""  # noqa: S608 constants alone

# Sorted while rows are narrow and looked up one by one after that: the first rows come at once, and nothing wide is sorted.
RANKINGS = f"""
SELECT chosen.task_uuid::text AS task_id, p.uuid::text AS prompt_id, chosen.batch, p.split, p.use_case, p.messages, chosen.labeler_group,
       (SELECT json_agg(ARRAY[r.uuid::text, r.text, r.model_version_id::text, r.origin, r.finish_reason, r.sampling::text])
          FROM labeling_taskresponse tr JOIN labeling_response r ON r.id = tr.response_id
         WHERE tr.task_id = chosen.task_id)::text AS responses,
       (SELECT json_agg(json_build_array(s.uuid, s.labeler_id, s.origin, s.status, s.is_surplus, s.schema_id, s.shown_order,
                 {REVISIONS}, {REVIEWS}))
          FROM labeling_submission s WHERE s.id = ANY(chosen.submissions))::text AS rankings
  FROM (SELECT t.id AS task_id, t.uuid AS task_uuid, t.prompt_id, b.name AS batch, s.labeler_group, array_agg(s.id) AS submissions
          FROM labeling_submission s
          JOIN labeling_task t ON t.id = s.task_id
          JOIN labeling_batch b ON b.id = t.batch_id
          JOIN labeling_prompt p ON p.id = t.prompt_id
         WHERE s.kind = 'ranking' AND {SUBMISSION_CONDITIONS}
           AND (%(min_agreement)s::float IS NULL OR 1 - t.disagreement >= %(min_agreement)s::float)
         GROUP BY t.id, b.name, s.labeler_group
         ORDER BY t.uuid, s.labeler_group COLLATE "C") chosen
 CROSS JOIN LATERAL (SELECT uuid, split, use_case, messages FROM labeling_prompt WHERE id = chosen.prompt_id LIMIT 1) p
 ORDER BY chosen.task_uuid, chosen.labeler_group COLLATE "C"
"""  # noqa: S608 constants alone

COUNTS = f"""
SELECT CASE WHEN s.labeler_group = 'training' THEN s.kind || 's' ELSE 'held_out' END AS label, count(*)
  FROM labeling_submission s
  JOIN labeling_task t ON t.id = s.task_id
  JOIN labeling_batch b ON b.id = t.batch_id
  JOIN labeling_prompt p ON p.id = t.prompt_id
 WHERE {SUBMISSION_CONDITIONS}
   AND (s.kind <> 'ranking' OR %(min_agreement)s::float IS NULL OR 1 - t.disagreement >= %(min_agreement)s::float)
 GROUP BY label
UNION ALL
SELECT 'demonstrations', count(*) FROM ({IMPORTED}) imported
"""  # noqa: S608 constants alone


def count(selection: Selection) -> dict[str, int]:
    """Labels that an export of this selection would hold now: demonstrations and rankings to train on, and held-out labelers'."""
    counts = {"demonstrations": 0, "rankings": 0, "held_out": 0}
    with connection.cursor() as cursor:
        cursor.execute(COUNTS, parameters(selection))
        for label, number in cursor.fetchall():
            counts[label] += number
    return counts


def queries(selection: Selection) -> Iterator[str]:
    """The SQL that an export of this selection reads, parameters filled in: what benchmarks COPY."""
    with connection.cursor() as cursor:
        for sql in (PROMPTS, DEMONSTRATIONS, IMPORTED, RANKINGS):
            yield ClientCursor(cursor.connection).mogrify(sql, parameters(selection))


def parameters(selection: Selection) -> dict[str, Any]:
    """What the queries' conditions take."""
    return {
        "batches": list(selection.batches) or None,
        "splits": list(selection.splits) or None,
        "use_cases": list(selection.use_cases) or None,
        "groups": list(selection.groups) or None,
        "origins": list(selection.origins),
        "statuses": [status.value for status, state in STATES.items() if state in selection.review],
        "surplus": selection.surplus,
        "since": selection.since,
        "until": selection.until,
        "schemas": _schema_keys(selection.schemas),
        "min_agreement": selection.min_agreement,
    }


def _schema_keys(versions: tuple[int, ...]) -> list[int] | None:
    return list(LabelSchema.objects.filter(version__in=versions).values_list("pk", flat=True)) if versions else None
