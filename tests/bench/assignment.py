"""What a claim costs, in rows and pages read and milliseconds, in the cases that make claims dear: long histories, exhausted queues, open
leases.

Both are counted by PostgreSQL for the claim's own transaction, so that they say the same on a busy machine. Rows are those fetched from
tables; what an index alone was asked shows in the pages. It empties the database's batches and prompts: run it on a database of its own.

    DATABASE_URL=… python -m tests.bench.assignment --slots 1000 10000 100000
"""

import argparse
import json
import statistics
import time
import uuid
from collections.abc import Callable, Iterator

from django.db import connection, models, transaction

CLAIMS = 15  # of each case, one after the other
OVERLAP = 2

# Each takes its names from the first column of `lay_out`.
WORDS = "(SELECT string_agg('word' || floor(random() * 1000)::int, ' ') FROM generate_series(1, %(words)s) WHERE {row} IS NOT NULL)"
PROMPTS = f"""
INSERT INTO labeling_prompt (uuid, messages, content_sha256, split, intake, author_id{{names}})
SELECT gen_random_uuid(), jsonb_build_array(jsonb_build_object('role', 'user', 'content', text)),
       encode(sha256(convert_to(text, 'UTF8')), 'hex'), 'train', 'open', NULL{{values}}
  FROM (SELECT %(name)s || ' ' || n || ' ' || {WORDS.format(row="n")} AS text FROM generate_series(1, %(tasks)s) AS n) made
RETURNING id
"""
TASKS = """
INSERT INTO labeling_task (uuid, batch_id, prompt_id, kind{names})
SELECT gen_random_uuid(), %(batch)s, id, %(kind)s{values} FROM bench_prompt ORDER BY id
"""
RESPONSES = f"""
WITH made AS (INSERT INTO labeling_response (uuid, prompt_id, text, text_sha256, model_version_id, external_id, origin{{names}})
  SELECT gen_random_uuid(), p.id, t.text, encode(sha256(convert_to(t.text, 'UTF8')), 'hex'), m.id, '', 'model'{{values}}
    FROM bench_prompt p CROSS JOIN unnest(%(models)s::bigint[]) AS m (id)
   CROSS JOIN LATERAL (SELECT p.id || ' of ' || m.id || ' ' || {WORDS.format(row="p.id")}) AS t (text) RETURNING id, prompt_id)
INSERT INTO labeling_taskresponse (task_id, response_id)
SELECT t.id, made.id FROM made JOIN labeling_task t ON t.prompt_id = made.prompt_id AND t.batch_id = %(batch)s
"""
RANKINGS = """
INSERT INTO labeling_revision (submission_id, number, submit_key, tiers, ratings{names})
SELECT s.id, 1, gen_random_uuid(), (SELECT jsonb_agg(jsonb_build_array(r.uuid) ORDER BY r.id) FROM labeling_taskresponse t
         JOIN labeling_response r ON r.id = t.response_id WHERE t.task_id = s.task_id),
       (SELECT jsonb_object_agg(r.uuid, jsonb_build_object('quality', 1 + r.id %% 7)) FROM labeling_taskresponse t
         JOIN labeling_response r ON r.id = t.response_id WHERE t.task_id = s.task_id){values}
  FROM labeling_submission s WHERE s.batch_id = %(batch)s
"""
DONE_SLOTS = """
INSERT INTO labeling_submission (uuid, task_id, batch_id, labeler_id, slot_id, is_surplus, kind, labeler_group, schema_id,
                                 revision_count, shown_order, submitted_at{names})
SELECT gen_random_uuid(), s.task_id, s.batch_id, s.labeler_id, s.id, false, s.kind, 'training', %(schema)s, 1,
       (SELECT coalesce(jsonb_agg(r.uuid), '[]') FROM labeling_taskresponse t JOIN labeling_response r ON r.id = t.response_id
         WHERE t.task_id = s.task_id), s.submitted_at{values}
  FROM labeling_slot s WHERE s.batch_id = %(batch)s AND s.status = 'submitted'
"""


def execute(sql: str, model: type[models.Model] | None = None, given: str = "", **params) -> None:
    """Run SQL; {names} and {values} become the columns of `model` that are not `given`, with Django's defaults."""
    from tests.bench.load import _stored

    rest = (
        [f for f in model._meta.concrete_fields if f.column not in given.split() and f.column != "id"] if model else []
    )
    rest = [
        field for field in rest if not field.generated and field.db_default is models.NOT_PROVIDED and not field.null
    ]
    names = "".join(f', "{field.column}"' for field in rest)
    values = "".join(f", %(default_{field.column})s" for field in rest)
    params |= {f"default_{field.column}": _stored(field) for field in rest}
    with connection.cursor() as cursor:
        cursor.execute(sql.format(names=names, values=values), params)


@transaction.atomic
def lay_out(*, tasks: int, overlap: int = OVERLAP, words: int = 5, **fields):
    """An active batch (of demonstrations, unless said) with so many tasks on prompts of their own, all seats open, as a batch's making
    leaves them. Texts have so many words, of about eight characters with the space."""
    from labeling.actions import batch_rows
    from labeling.models import Batch, LabelSchema, ModelVersion, Prompt, Response, Task

    name = fields.pop("name", f"bench {uuid.uuid4()}")
    fields = {"kind": "demonstration"} | fields
    batch = Batch.objects.create(name=name, schema=LabelSchema.latest(), overlap=overlap, **fields)
    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE bench_prompt (id bigint) ON COMMIT DROP")
    made = PROMPTS.replace("INSERT", "WITH made AS (INSERT", 1) + ") INSERT INTO bench_prompt SELECT id FROM made"
    execute(made, Prompt, "uuid messages content_sha256 split intake author_id", name=name, tasks=tasks, words=words)
    execute(TASKS, Task, "uuid batch_id prompt_id kind", batch=batch.pk, kind=batch.kind)
    if batch.responses_per_task:
        names = [f"bench-{i}" for i in range(batch.responses_per_task)]
        versions = [ModelVersion.objects.get_or_create(name=n, defaults={"stage": "external"})[0].pk for n in names]
        given = "uuid prompt_id text text_sha256 model_version_id external_id origin"
        execute(RESPONSES, Response, given, models=versions, batch=batch.pk, words=words)
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE bench_prompt")
        cursor.execute(batch_rows.INSERT_SLOTS, {"batch": batch.pk, "overlap": overlap})
    return batch


@transaction.atomic
def do_first_seats(batch, labeler, share: float, other) -> None:
    """The first seat of every task is handed in: this share of the tasks, the oldest, by `labeler`, the others by `other`."""
    from labeling.models import Submission

    cut = int(batch.tasks.count() * share)
    edge = batch.tasks.order_by("id")[cut].pk if cut < batch.tasks.count() else 2**62
    execute(
        "UPDATE labeling_slot SET status = 'submitted', leased_at = now(), submitted_at = now(),"
        " labeler_id = CASE WHEN task_id < %(edge)s THEN %(mine)s ELSE %(other)s END WHERE batch_id = %(batch)s AND seat = 1",
        batch=batch.pk, edge=edge, mine=labeler.pk, other=other.pk,
    )  # fmt: skip
    given = (
        "uuid task_id batch_id labeler_id slot_id is_surplus kind labeler_group schema_id revision_count shown_order"
        " submitted_at"
    )
    execute(DONE_SLOTS, Submission, given, batch=batch.pk, schema=batch.schema_id)


@transaction.atomic
def rank_all(batch) -> None:
    """The first seat of every task of rankings is handed in: an order without ties, and a quality of each response."""
    from labeling.models import Revision

    do_first_seats(batch, labeler(), 1, labeler())
    execute(RANKINGS, Revision, "submission_id number submit_key tiers ratings", batch=batch.pk)


@transaction.atomic
def lease_first(batch, count: int) -> None:
    """So many of the batch's first seats are leased, each to a labeler of its own."""
    people = [labeler() for _ in range(count)]
    execute(
        "UPDATE labeling_slot s SET status = 'leased', leased_at = now(), lease_expires_at = now() + interval '1 hour',"
        " labeler_id = p.person"
        " FROM (SELECT id, row_number() OVER (ORDER BY seat, id) AS n FROM labeling_slot WHERE batch_id = %(batch)s"
        " AND status = 'open' LIMIT %(count)s) f JOIN unnest(%(people)s::bigint[]) WITH ORDINALITY AS p (person, n)"
        " USING (n) WHERE s.id = f.id",
        batch=batch.pk, count=count, people=[person.pk for person in people],
    )  # fmt: skip


def labeler(**fields):
    """Another labeler."""
    from labeling.models import Role, User, UserRole

    made = User.objects.create(email=f"{uuid.uuid4()}@bench.example", password="!", **fields)
    UserRole.objects.create(user=made, role=Role.LABELER)
    return made


# The cases: each lays out its batches anew and returns the labeler who claims ------------------------------------------------------


def plain(slots: int):
    """Nothing done yet."""
    lay_out(tasks=slots // OVERLAP)
    return labeler()


def with_leases(leases: int) -> Callable:
    """So many foreign leases are open."""

    def case(slots: int):
        lease_first(lay_out(tasks=slots // OVERLAP), min(leases, slots // 2))
        return labeler()

    return case


def done_four_fifths(slots: int):
    """The labeler has done the first seat of 80 % of the tasks, the oldest; every second seat is open."""
    me, batch = labeler(), lay_out(tasks=slots)
    do_first_seats(batch, me, 0.8, labeler())
    return me


def exhausted(slots: int):
    """Every open seat is on a task that the labeler has done."""
    me, batch = labeler(), lay_out(tasks=slots)
    do_first_seats(batch, me, 1, me)
    return me


def other_group(slots: int):
    """Every open seat is for the other group."""
    lay_out(tasks=slots // OVERLAP, group="held_out")
    return labeler(group="training")


def paused_first(slots: int):
    """All but a few of the open seats, the first in order, are in ten paused batches of the highest priority."""
    for _ in range(10):
        lay_out(tasks=slots // OVERLAP // 10, status="paused", priority=9)
    lay_out(tasks=50)
    return labeler()


def own_prompts(slots: int):
    """The labeler wrote a quarter of the prompts, the oldest."""
    from labeling.models import Author, Prompt

    me, batch = labeler(), lay_out(tasks=slots // OVERLAP)
    author = Author.objects.create(key=str(uuid.uuid4()), split="train", user=me)
    mine = batch.tasks.order_by("id").values_list("prompt_id", flat=True)[: slots // OVERLAP // 4]
    Prompt.objects.filter(pk__in=list(mine)).update(author=author)
    return me


def many_skips(slots: int):
    """The labeler has skipped 200 tasks, and their drafts are there still."""
    from labeling.models import Draft, Skip

    me, batch = labeler(), lay_out(tasks=slots // OVERLAP)
    tasks = list(batch.tasks.order_by("id")[:200])
    Skip.objects.bulk_create(Skip(task=task, labeler=me, reason="unclear") for task in tasks)
    Draft.objects.bulk_create(Draft(task=task, labeler=me) for task in tasks)
    return me


CASES: dict[str, Callable] = {
    "nothing done yet": plain,
    "500 foreign leases": with_leases(500),
    "2,000 foreign leases": with_leases(2000),
    "80 % done by oneself": done_four_fifths,
    "exhausted": exhausted,
    "all for the other group": other_group,
    "paused batches first": paused_first,
    "own prompts first": own_prompts,
    "200 skipped": many_skips,
}


# Measuring ----------------------------------------------------------------------------------------------------------------------------


def cost(action: Callable[[], object]) -> tuple[float, int, int, object]:
    """(milliseconds, rows read from tables, pages read of tables and indexes, result) of an action in a transaction of its own."""
    with transaction.atomic():
        before, began = _read(), time.perf_counter()
        result = action()
        took = 1000 * (time.perf_counter() - began)
        rows, pages = (now - then for now, then in zip(_read(), before, strict=True))
        return took, rows, pages, result


def _read() -> tuple[int, int]:
    """Rows that this transaction has fetched so far, by index or not, and pages that it has looked at."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT (SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) FROM pg_stat_xact_user_tables),"
            " (SELECT sum(pg_stat_get_xact_blocks_fetched(oid)) FROM pg_class"
            "   WHERE relkind IN ('r', 'i') AND relname NOT LIKE 'pg\\_%%')", []
        )  # fmt: skip
        rows, pages = cursor.fetchone()
        return int(rows), int(pages)


def empty() -> None:
    """Remove what a case laid out."""
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE labeling_prompt, labeling_response, labeling_batch, labeling_author CASCADE")


def measure(case: Callable, slots: int) -> dict:
    """The first claim of the case, then CLAIMS more, each handed in if there was one."""
    from labeling.actions import submissions, tasks

    empty()
    person = case(slots)
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")
    costs, given = [], 0
    for _ in range(1 + CLAIMS):
        *spent, slot = cost(lambda: tasks.claim_next(by=person))
        costs.append(spent)
        if slot is not None:
            given += 1
            submissions.submit(task=slot.task, submit_key=uuid.uuid4(), answer={"text": "Done."}, by=person)
    first, rest = costs[0], costs[1:]
    return {
        "slots": slots,
        "first_ms": round(first[0], 1),
        "first_rows": first[1],
        "first_pages": first[2],
        "ms": round(statistics.median(ms for ms, _rows, _pages in rest), 1),
        "ms_max": round(max(ms for ms, _rows, _pages in rest), 1),
        "rows": int(statistics.median(rows for _ms, rows, _pages in rest)),
        "pages": int(statistics.median(pages for _ms, _rows, pages in rest)),
        "given": given,
    }


def run(sizes: list[int], names: list[str]) -> Iterator[dict]:
    """Every case at every size."""
    for name in names:
        for slots in sizes:
            yield {"case": name} | measure(CASES[name], slots)


def main() -> None:
    """Print a line for each."""
    import django

    django.setup()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, nargs="+", default=[1000, 10_000, 100_000], help="open seats")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    for row in run(options.slots, options.cases):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
