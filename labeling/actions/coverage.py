"""Which prompts are to be labeled next: those of the use cases, and the prompts, that have the fewest tasks."""

from typing import Any

from django.db import connection

from labeling.models import Prompt

MOST_PROMPTS = 5000

# The k-th prompt taken of a use case brings it to (tasks + k) / prompts: in the order of that figure, use cases are filled like vessels
# to the same level. The dice depend on contents, so that the same data and seed give the same choice everywhere.
LEAST_COVERED = """
WITH prompt AS (
  SELECT p.id, p.use_case, p.split, count(t.id) AS tasks, md5(concat_ws(':', %(seed)s::text, p.content_sha256)) AS dice
    FROM labeling_prompt p LEFT JOIN labeling_task t ON t.prompt_id = p.id AND t.kind = %(kind)s
   WHERE p.intake = 'open' AND (%(split)s = '' OR p.split = %(split)s) AND (%(use_case)s = '' OR p.use_case = %(use_case)s)
   GROUP BY p.id
), use_case AS (
  SELECT use_case, count(*) AS prompts, sum(tasks) AS tasks FROM prompt GROUP BY use_case
), turns AS (
  SELECT *, row_number() OVER (PARTITION BY use_case ORDER BY tasks, dice) AS turn FROM prompt
)
SELECT t.id, t.tasks FROM turns t JOIN use_case u USING (use_case)
 ORDER BY (u.tasks + t.turn) / u.prompts::float, t.dice LIMIT %(limit)s
"""


def least_covered(
    *, kind: str, split: str = "", use_case: str = "", limit: int = 100, seed: int = 0
) -> list[tuple[Prompt, int]]:
    """(open prompt, its tasks of this kind), in the order in which they bring all use cases to the same tasks per prompt."""
    chosen: dict[str, Any] = {"kind": kind, "split": split, "use_case": use_case, "limit": limit, "seed": seed}
    with connection.cursor() as cursor:
        cursor.execute(LEAST_COVERED, chosen)
        found: list[tuple[int, int]] = cursor.fetchall()
    prompts = Prompt.objects.in_bulk([pk for pk, _tasks in found])
    return [(prompts[pk], tasks) for pk, tasks in found if pk in prompts]
