"""The rows of a new batch: which prompts and responses it takes, and its tasks and seats. All in the database, set by set."""

from collections.abc import Sequence

from django.db import connection
from django.db.models import QuerySet
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from labeling.errors import Invalid
from labeling.models import Batch, Intake, Kind, Prompt

# Why a prompt gets no task, in the words shown to people.
LEFT_OUT = {
    "without_model": gettext_lazy("have no response of a model that every task must include"),
    "too_few_responses": gettext_lazy("have fewer responses than K"),
    "identical_texts": gettext_lazy("have responses that are all alike"),
    "beyond_limit": gettext_lazy("are beyond the limit"),
}

# `choice` numbers a prompt's responses in the order in which they are taken: what must be in, then texts not seen yet
# (copy 1), then models not seen yet (turn 1), then by the dice. The dice depend on contents, never on ids, so that the
# same data and seed give the same choice everywhere.
CANDIDATES = """
CREATE TEMP TABLE heed_candidate ON COMMIT DROP AS
WITH response AS (
  SELECT r.id, r.prompt_id, r.model_version_id, r.text_sha256, m.name = ANY(%(must)s::text[]) AS of_must,
         md5(concat_ws(':', %(seed)s::text, r.text_sha256, m.name, r.external_id)) AS dice
    FROM heed_prompt p
    JOIN labeling_response r ON r.prompt_id = p.id
    JOIN labeling_modelversion m ON m.id = r.model_version_id
   WHERE r.origin = 'model' AND (%(any_model)s OR m.name = ANY(%(models)s::text[]))
), firsts AS (
  SELECT *, of_must AND 1 = row_number() OVER (PARTITION BY prompt_id, model_version_id ORDER BY dice, id) AS is_must
    FROM response
), copies AS (
  SELECT *, row_number() OVER (PARTITION BY prompt_id, text_sha256 ORDER BY is_must DESC, dice, id) AS copy
    FROM firsts
), turns AS (
  SELECT *, row_number() OVER (PARTITION BY prompt_id, copy, model_version_id ORDER BY is_must DESC, dice, id) AS turn
    FROM copies
)
SELECT id AS response_id, prompt_id, text_sha256, is_must,
       row_number() OVER (PARTITION BY prompt_id ORDER BY is_must DESC, copy, turn, dice, id) AS choice
  FROM turns
"""

VERDICTS = """
CREATE TEMP TABLE heed_verdict ON COMMIT DROP AS
SELECT p.id AS prompt_id, p.content_sha256,
       CASE WHEN count(c.response_id) FILTER (WHERE c.is_must) < %(must)s THEN 'without_model'
            WHEN count(c.response_id) < %(k)s THEN 'too_few_responses'
            WHEN count(DISTINCT c.text_sha256) FILTER (WHERE c.choice <= %(k)s) < 2 THEN 'identical_texts'
            ELSE 'ok' END AS verdict
  FROM heed_prompt p LEFT JOIN heed_candidate c ON c.prompt_id = p.id
 GROUP BY p.id, p.content_sha256
"""

ALL_PROMPTS = """
CREATE TEMP TABLE heed_verdict ON COMMIT DROP AS SELECT id AS prompt_id, content_sha256, 'ok' AS verdict FROM heed_prompt
"""

CHOSEN = """
CREATE TEMP TABLE heed_chosen ON COMMIT DROP AS
SELECT prompt_id, row_number() OVER (ORDER BY md5(concat_ws(':', %(seed)s::text, content_sha256))) AS place
  FROM heed_verdict WHERE verdict = 'ok' ORDER BY place LIMIT %(limit)s
"""

INSERT_TASKS = """
INSERT INTO labeling_task (uuid, batch_id, prompt_id, kind, created_at)
SELECT gen_random_uuid(), %(batch)s, prompt_id, %(kind)s, now() FROM heed_chosen ORDER BY place
"""

INSERT_TASK_RESPONSES = """
INSERT INTO labeling_taskresponse (task_id, response_id)
SELECT t.id, c.response_id FROM labeling_task t JOIN heed_candidate c ON c.prompt_id = t.prompt_id
 WHERE t.batch_id = %(batch)s AND c.choice <= %(k)s ORDER BY t.id
"""

# Seats lie in the table in the order in which they are claimed: the first seat of every task, then the second.
INSERT_SLOTS = """
INSERT INTO labeling_slot (task_id, seat, batch_id, kind, status, turn, is_gold)
SELECT t.id, seat, t.batch_id, t.kind, 'open', 0, false
  FROM labeling_task t CROSS JOIN generate_series(1, %(overlap)s) AS seat
 WHERE t.batch_id = %(batch)s ORDER BY seat, t.id
"""

DROP = "DROP TABLE IF EXISTS heed_prompt, heed_candidate, heed_verdict, heed_chosen"


def materialise(
    batch: Batch,
    *,
    prompts: QuerySet[Prompt],
    model_names: Sequence[str],
    must_include: Sequence[str],
    limit: int | None,
    seed: int,
) -> dict[str, int]:
    """Write a new batch's tasks, responses and seats (inside the caller's transaction).

    Returns counts: prompts looked at, those left out by reason, tasks and seats made. Raises Invalid if nothing is left.
    """
    with connection.cursor() as cursor:
        _prepare(cursor, prompts)
        counts = _choose(cursor, batch, model_names, must_include, limit, seed)
        if not counts["tasks"]:
            raise Invalid(_nothing_left(counts))
        cursor.execute(INSERT_TASKS, {"batch": batch.pk, "kind": batch.kind})
        if batch.kind == Kind.RANKING:
            cursor.execute(INSERT_TASK_RESPONSES, {"batch": batch.pk, "k": batch.responses_per_task})
        cursor.execute(INSERT_SLOTS, {"batch": batch.pk, "overlap": batch.overlap})
        counts["seats"] = cursor.rowcount
        cursor.execute(DROP)
    return counts


def _prepare(cursor, prompts: QuerySet[Prompt]) -> None:
    sql, params = prompts.order_by().values("id", "content_sha256").query.sql_with_params()
    cursor.execute(f"CREATE TEMP TABLE heed_prompt ON COMMIT DROP AS {sql}", params)
    cursor.execute("ANALYZE heed_prompt")


def _choose(cursor, batch: Batch, model_names, must_include, limit: int | None, seed: int) -> dict[str, int]:
    if batch.kind == Kind.RANKING:
        models = {"models": list(model_names), "any_model": not model_names, "must": list(must_include), "seed": seed}
        cursor.execute(CANDIDATES, models)
        cursor.execute("ANALYZE heed_candidate")
        cursor.execute(VERDICTS, {"must": len(must_include), "k": batch.responses_per_task})
    else:
        cursor.execute(ALL_PROMPTS)
    cursor.execute(CHOSEN, {"seed": seed, "limit": limit})
    cursor.execute("ANALYZE heed_chosen")
    return _count(cursor)


def _count(cursor) -> dict[str, int]:
    cursor.execute("SELECT verdict, count(*) FROM heed_verdict GROUP BY verdict")
    verdicts = dict(cursor.fetchall())
    cursor.execute("SELECT count(*) FROM heed_chosen")
    tasks = cursor.fetchone()[0]
    counts = {reason: verdicts.get(reason, 0) for reason in LEFT_OUT}
    counts["beyond_limit"] = verdicts.get("ok", 0) - tasks
    return {"prompts": sum(verdicts.values()), **counts, "tasks": tasks}


def _nothing_left(counts: dict[str, int]) -> str:
    if not counts["prompts"]:
        waiting = Prompt.objects.filter(intake=Intake.WAITING)[:100_000].count()
        if waiting:
            said = _(
                "Nothing matches: no prompt passes the filters. %(n)d prompts are still waiting for the checks of intake."
            )
            return said % {"n": waiting}
        return _("Nothing matches: no prompt passes the filters.")
    reasons = [f"{counts[name]} {words}" for name, words in LEFT_OUT.items() if counts[name]]
    return _("Nothing matches: of %(n)d prompts, %(reasons)s.") % {
        "n": counts["prompts"],
        "reasons": ", ".join(reasons),
    }
