"""What labelers must not learn: which model wrote a response, which task is gold, what others answered. Not from source, ids,
order, headers, redirects, refusals, query strings, the number of queries, or the API.

Database ids are made to begin at a number that stands nowhere else, so that one in a page is found. Pages are found by following
every link and every form of a labeler's, and by their addresses, so that new ones are covered.
"""

import re
import uuid
from collections import Counter, defaultdict
from html.parser import HTMLParser

import pytest
from django.apps import apps
from django.db import connection, models
from django.test import Client
from django.urls import URLPattern, get_resolver
from django.utils import timezone
from scipy import stats

from labeling.actions import drafts, reviews, submissions, tasks, tokens
from labeling.models import ApiToken, Batch, Draft, GoldAnswer, Slot, Submission, Task, TaskResponse, User
from tests import builders
from tests.bench.pages import counted, methods
from tests.labeling import rows

pytestmark = pytest.mark.django_db
FIRST_ID = 730_000_001
ANY_ID = re.compile(r"(?<![0-9a-f-])7300\d{5}(?![0-9a-f-])")  # not within a UUID or a digest
MODELS = ("policy-amber-17", "policy-birch-42", "policy-cedar-99")
ELSES = "Zanzibar is what the other one wrote"  # in everything that another labeler said
ELSE_NAME = "Otherone Unseen"


class Links(HTMLParser):
    """Every address in a page, and every form with its fields."""

    def __init__(self, html: str):
        super().__init__()
        self.links: set[str] = set()
        self.forms: list[tuple[str, dict[str, str]]] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        of = dict(attrs)
        for name in ("href", "src", "hx-get", "data-url"):
            if (of.get(name) or "").startswith("/"):
                self.links.add(of[name].partition("#")[0])
        if tag == "form":
            self.forms.append((of.get("action") or "", {}))
        if tag in ("input", "button", "textarea") and of.get("name") and self.forms:
            self.forms[-1][1][of["name"]] = of.get("value") or ""


def is_labelers(path: str) -> bool:
    return not path.startswith(("/console/", "/admin/", "/accounts/", "/static/", "/api/", "/favicon"))


@pytest.fixture(autouse=True)
def large_ids(db):
    """Ids that can be told from any other number."""
    with connection.cursor() as cursor:
        for model in apps.get_app_config("labeling").get_models():
            if model._meta.pk.name != "id":
                continue  # its key is another's
            cursor.execute("SELECT setval(pg_get_serial_sequence(%s, 'id'), %s)", [model._meta.db_table, FIRST_ID])


@pytest.fixture
def world(make_user, reviewer):
    """(labeler, normal task, gold task): both begun by them; both, and what they have handed in, done by another before."""
    labeler = make_user("mine@example.org", "labeler", name="Mina Mine")
    other = make_user("other@example.org", "labeler", name=ELSE_NAME)
    ranking = builders.batch("ranking", name="rank these", k=3, overlap=3)
    texts = [
        dict(zip(MODELS, (f"{n} one", f"{n} two", f"{n} three"), strict=True)) for n in ("first", "second", "third")
    ]
    normal, gold, done = (builders.task(ranking, builders.prompt(f"Question {i}?"), t) for i, t in enumerate(texts))
    demonstration = builders.task(builders.batch(name="write these", overlap=3), builders.prompt("Write."))
    for task in (normal, gold, done):
        given = rows.response_ids(task)
        said = {"quality": 6, "flags": {"violent": True}}
        rows.submit(task, other, tiers=[[name] for name in given], comment=ELSES, ratings=dict.fromkeys(given, said))
    rows.submit(demonstration, other, text=ELSES, comment=ELSES)
    GoldAnswer.objects.create(
        task=gold, tiers=[[name] for name in rows.response_ids(gold)], explanation=f"Gold: {ELSES}", made_by=reviewer
    )
    Task.objects.filter(pk=gold.pk).update(is_gold=True)
    for task in (done, normal, gold, demonstration):
        give(task, labeler)
    hand_in(done, labeler)
    mine = Submission.objects.get(task=done, labeler=labeler)
    reviews.review(submission=mine, revision=1, verdict="returned", comment="Rate the second again.", by=reviewer)
    for task in (normal, gold):
        drafts.set_aside(task=task, content={"comment": "an older version of mine"}, by=labeler)
    return labeler, normal, Task.objects.get(pk=gold.pk)


def give(task: Task, labeler: User) -> None:
    """Lease a seat and make the draft, as a claim does; a gold task's seat is an extra one."""
    slot = task.slots.filter(status="open").order_by("seat")[0]
    tasks._lease(slot, labeler, timezone.now())
    Slot.objects.filter(pk=slot.pk).update(is_gold=task.is_gold)
    tasks._make_draft(task.pk, labeler, timezone.now())


def hand_in(task: Task, labeler: User) -> None:
    shown = Draft.objects.get(task=task, labeler=labeler).shown_order
    submissions.submit(
        task=task, submit_key=uuid.uuid4(), answer=builders.ranking_answer([[name] for name in shown]), by=labeler
    )


def everything(client: Client, start: str = "/") -> dict[str, str]:
    """Whatever a labeler's browser can be told: address (and method) → status, headers and body."""
    seen: dict[str, str] = {}
    waiting = [start, "/nothing/", *addresses()]
    forms: dict[str, dict[str, str]] = {}
    while waiting:
        path = waiting.pop()
        if path in seen or not is_labelers(path):
            continue
        answer = client.get(path)
        seen[path] = told(answer)
        found = Links(seen[path]) if "html" in answer.get("Content-Type", "") else Links("")
        waiting += found.links | ({answer["Location"]} if answer.has_header("Location") else set())
        forms |= {action: fields for action, fields in found.forms if action.startswith("/")}
    for action, fields in forms.items():
        if is_labelers(action) and not action.endswith(("/release", "/withdraw")):
            for kind in ("text/html", "application/json"):
                seen[f"POST {action} {kind}"] = told(
                    client.post(action, {**fields, "submit_key": "x"}, HTTP_ACCEPT=kind)
                )
    return seen


def told(answer) -> str:
    body = b"".join(answer.streaming_content) if answer.streaming else answer.content
    heads = "\n".join(f"{name}: {value}" for name, value in answer.headers.items() if name != "Content-Security-Policy")
    cookies = "\n".join(f"{name}={cookie.value}" for name, cookie in answer.cookies.items() if name != "sessionid")
    return f"{answer.status_code}\n{heads}\n{cookies}\n{body.decode()}"


def addresses() -> list[str]:
    """Labelers' addresses without arguments."""
    found = [
        p for p in get_resolver().url_patterns if isinstance(p, URLPattern) and p.name and not p.pattern.converters
    ]
    return [path for p in found if is_labelers(path := f"/{p.pattern}") and "GET" in methods(p.callback)]


def test_nothing_a_labeler_is_told_gives_anything_away(world, client_for):
    labeler, normal, gold = world
    seen = everything(client_for(labeler))
    opened = " ".join(seen)
    for part in (
        f"/tasks/{normal.uuid}/",
        f"/tasks/{gold.uuid}/",
        "/history/",
        f"{gold.uuid}/submit",
        "/copies/",
        "/reopen",
    ):
        assert part in opened, f"{part} was not opened: {sorted(seen)}"
    responses = {str(name) for name in TaskResponse.objects.values_list("response__uuid", flat=True)}
    prompts = {str(name) for name in Task.objects.values_list("prompt__uuid", flat=True)}
    others = {str(s.uuid) for s in Submission.objects.exclude(labeler=labeler)}
    for path, answer in seen.items():
        for secret in (*MODELS, ELSES, ELSE_NAME, "other@example.org", "Rui Reviewer", "reviewer@example.org"):
            assert secret not in answer, f"{path} tells {secret!r}"
        assert not re.search(r"\bgold|is_gold|reference", answer, re.IGNORECASE), f"{path} tells of gold"
        named = set(re.findall(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", answer))
        assert not named & responses, f"{path} names responses"
        assert not named & prompts, f"{path} names prompts"
        assert not named & others, f"{path} names others' submissions"
        assert all(uuid.UUID(name).version == 4 for name in named), f"{path} has an id that may tell an order"
        found = ANY_ID.search(answer)
        assert not found, f"{path} holds a database id: …{answer[max(0, found.start() - 80) : found.end() + 20]}…"


def test_what_others_do_leaves_no_trace_but_a_seat_less(world, client_for, make_user):
    """The page of a task is the same before and after another hands in an answer to it."""
    labeler, normal, _gold = world
    client = client_for(labeler)
    before = steady(client.get(f"/tasks/{normal.uuid}/"))
    rows.submit(normal, make_user("third@example.org", "labeler"), comment=ELSES)
    assert steady(client.get(f"/tasks/{normal.uuid}/")) == before


def steady(answer) -> str:
    """A page without what is drawn anew each time: tokens, keys, clocks."""
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}", "UUID", answer.content.decode())
    text = re.sub(r'csrfmiddlewaretoken" value="\w+"|"X-CSRFToken": "\w+"', "TOKEN", text)
    return re.sub(r"(\d+(\.\d+)?|\ba)( |\xa0)(seconds?|minutes?)( ago)?|\d\d?:\d\d(:\d\d)?|now", "TIME", text)


def test_a_gold_task_is_a_task_like_any_other(world, client_for):
    """The same page but for its texts, the same answers, in as many queries: from opening it to what is in the history."""
    labeler, normal, gold = world
    drafts_of = Draft.objects.filter(labeler=labeler)
    client = client_for(labeler)
    told_of, costs = defaultdict(list), defaultdict(list)

    def note(step: str, task: Task, answer, count: list[int]) -> None:
        text = steady(answer).replace(task.prompt.text, "PROMPT")
        text = re.sub(r"(first|second) (one|two|three)", "RESPONSE", text)
        told_of[step].append(
            (answer.status_code, sorted(answer.headers), re.sub(r"\b[0-9a-f]{12,64}\b", "DIGEST", text))
        )
        costs[step].append(count[0])

    for task in (normal, gold):
        path = f"/tasks/{task.uuid}/"
        client.get(path)
        fields = {f"quality-{letter}": "4" for letter in "ABC"} | {
            f"place-{letter}": str(i) for i, letter in enumerate("ABC", 1)
        }
        key = str(uuid.uuid4())
        for step, method, data in (
            ("", "get", {}), ("draft", "post", {"comment": "x", "version": "1", "editor": "e"}), ("renew", "post", {}),
            ("submit", "post", {"submit_key": key}), ("submit", "post", fields | {"submit_key": key, "version": "2", "editor": "e"}),
        ):  # fmt: skip
            with counted() as count:
                answer = getattr(client, method)(path + step, data)
            note(f"{method} {step} {len(data)}", task, answer, count)
        mine = Submission.objects.get(task=task, labeler=labeler)
        Submission.objects.filter(pk=mine.pk).update(is_gold=task.is_gold)
        for path in (f"/history/{mine.uuid}/", f"/tasks/{task.uuid}/"):
            with counted() as count:
                answer = client.get(path)
            note(f"after {path[:4]}", task, answer, count)
    assert not drafts_of.filter(task__in=[normal, gold]).exists(), "both were handed in"
    for step, (one, other) in told_of.items():
        assert one[:2] == other[:2], step
        differ = [pair for pair in zip(one[2].splitlines(), other[2].splitlines(), strict=True) if pair[0] != pair[1]]
        assert not differ, f"{step}: {differ[:3]}"
    assert {step: a - b for step, (a, b) in costs.items() if a != b} == {}, "more queries take more time"


SORTS = ("sort=model", "ordering=-is_gold", "order_by=task__task_responses__response__model_version__name", "o=1.-2",
         "sort=id", "filter=is_gold", "is_gold=1", "model=policy-amber-17", "models=1", "labeler=730000002")  # fmt: skip


def test_query_strings_neither_sort_nor_filter_by_what_is_hidden(world, client_for):
    labeler, normal, gold = world
    client = client_for(labeler)
    for path in ("/tasks/", "/history/", "/history/feedback/", f"/tasks/{normal.uuid}/", f"/tasks/{gold.uuid}/"):
        plain = steady(client.get(path))
        for query in SORTS:
            answer = client.get(f"{path}?{query}")
            assert answer.status_code == 200 and steady(answer).replace(query, "") == plain, f"{path}?{query}"


def test_refusals_tell_nothing(world, client_for, make_user):
    """Others' rows and rows that do not exist are refused alike; the console says nothing at all."""
    labeler, _normal, gold = world
    stranger = client_for(make_user("stranger@example.org", "labeler"))
    foreign, nowhere = Submission.objects.exclude(labeler=labeler).first().uuid, uuid.uuid4()
    for path in ("/tasks/{}/", "/tasks/{}/question", "/history/{}/"):
        there = gold.uuid if "tasks" in path else foreign
        mine, none = (stranger.get(path.format(name)) for name in (there, nowhere))
        assert mine.status_code == none.status_code == 404
        assert steady(mine) == steady(none), path
    for path in ("draft", "submit", "renew", "skip", "release", "aside"):
        mine, none = (stranger.post(f"/tasks/{name}/{path}", {"text": "x"}) for name in (gold.uuid, nowhere))
        assert mine.status_code == none.status_code == 404, path
        assert steady(mine) == steady(none), path
    client = client_for(labeler)
    answers = {path: client.get(path) for path in console_addresses(gold, foreign)}
    assert {answer.status_code for answer in answers.values()} == {403}, answers
    consoles = {steady(answer).replace(' aria-current="page"', "") for answer in answers.values()}
    [console] = consoles
    assert not any(secret in console for secret in (*MODELS, ELSES, ELSE_NAME))


def console_addresses(task: Task, submission: uuid.UUID) -> list[str]:
    model = TaskResponse.objects.values_list("response__model_version", flat=True)[0]
    return ["/console/submissions/", f"/console/submissions/{submission}/?models=1", f"/console/batches/{task.batch_id}/",
            f"/console/models/{model}/", f"/console/tasks/{task.uuid}/adjudication", "/console/dashboards/policies/",
            f"/console/dashboards/policies/{model}/{model}/", "/console/dashboards/policies.csv", "/console/exports/"]  # fmt: skip


REFUSED = {302, 401, 403, 404, 405}
ANSWERED = REFUSED | {200, 201, 204, 400, 409, 415, 422}


def test_the_api_tells_a_labeler_nothing(world, client_for):
    """By session and by a token of every scope, each method of each endpoint: refused alike, whether there is such a row or not;
    and what is a labeler's own (their tasks, their submissions) says no more than its page."""
    labeler, _normal, gold = world
    _token, secret = tokens.create(user=labeler, name="curious", scopes=list(ApiToken.Scope.values))
    argument = {"key": "v0001", "name": MODELS[0], "file_name": "rankings.jsonl", "pk": "1"}
    routes = [
        str(p.pattern) for p in get_resolver("labeling.api.urls").url_patterns if not str(p.pattern).startswith("^")
    ]

    def address(route: str) -> str:
        return "/api/v1/" + re.sub(r"<\w+:(\w+)>", lambda found: argument.get(found[1], str(gold.uuid)), route)

    own = {address(route) for route in routes if route.startswith(("tasks/", "me/"))}
    paths = [address(route) for route in routes] + ["/api/v1/models/none/", f"/api/v1/tasks/{gold.uuid}/", "/api/v1/"]
    assert len(paths) >= 40 and "/api/v1/prompts/" in paths and f"/api/v1/tasks/{gold.uuid}/submit/" in own
    by_token = {"HTTP_AUTHORIZATION": f"Bearer {secret}"}
    browser, program = client_for(labeler), Client()
    for path in paths:
        for method in ("get", "post", "put", "patch", "delete", "options"):
            for client, heads in ((browser, {}), (program, by_token)):
                answer = getattr(client, method)(path, **heads)
                allowed = ANSWERED if path in own else REFUSED | ({200} if method == "options" else set())
                assert answer.status_code in allowed, f"{method} {path}: {answer.status_code}"
                said = told(answer).replace(path, "")
                assert not any(word in said for word in (*MODELS, ELSES, ELSE_NAME)), f"{method} {path}"
                assert not ANY_ID.search(said), f"{method} {path}"
    there, none = (Client().get(f"/api/v1/models/{name}/", **by_token) for name in (MODELS[0], "none"))
    assert (there.status_code, there.content) == (none.status_code, none.content)


def test_ids_that_labelers_see_are_random():
    """Version 4: no time, no counter, no machine in them."""
    fields = [
        field
        for model in apps.get_app_config("labeling").get_models()
        for field in model._meta.fields
        if isinstance(field, models.UUIDField) and field.has_default()
    ]
    assert len(fields) >= 5
    assert all(field.default is uuid.uuid4 for field in fields), "uuid1, uuid6 and uuid7 tell when a row was made"


def test_the_order_shown_is_drawn_for_each_labeler_and_tells_nothing_of_models(make_user):
    """Places × models over 50 labelers of each of four tasks, and the order in which rows were made: independent (χ²)."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT setseed(0.11)")  # the order is drawn by the database
    batch = builders.batch("ranking", k=3, overlap=50)
    people = User.objects.bulk_create(User(email=f"crowd-{i}@example.org", password="!") for i in range(50))
    places: Counter[tuple[str, int]] = Counter()
    orders: dict[int, Counter[tuple[str, ...]]] = defaultdict(Counter)
    for number in range(4):
        task = Task.objects.create(batch=batch, prompt=builders.prompt(f"Q{number}"), kind="ranking")
        made = rows.make_responses(task.prompt, *MODELS)  # by m0, m1, m2, in this order
        TaskResponse.objects.bulk_create(TaskResponse(task=task, response=response) for response in made)
        name_of = {str(response.uuid): response.text for response in made}
        for person in people:
            tasks._make_draft(task.pk, person, timezone.now())
        for shown in Draft.objects.filter(task=task).values_list("shown_order", flat=True):
            order = tuple(name_of[name] for name in shown)
            orders[number][order] += 1
            places.update((model, place) for place, model in enumerate(order))
    table = [[places[model, place] for place in range(3)] for model in MODELS]
    assert sum(map(sum, table)) == 600
    assert stats.chi2_contingency(table).pvalue > 1e-3, table
    for number, counts in orders.items():
        assert len(counts) == 6 and max(counts.values()) <= 20, f"task {number}: {counts}"


def test_the_order_stays_as_it_was_drawn(world, client_for):
    """Loading a page again, or coming back, draws no new order from which the texts' places could be averaged."""
    labeler, normal, _gold = world
    client = client_for(labeler)
    texts = [
        re.findall(r"first (?:one|two|three)", client.get(f"/tasks/{normal.uuid}/").content.decode()) for _ in range(3)
    ]
    assert texts[0] == texts[1] == texts[2] and len(set(texts[0])) == 3
    tasks.release(task=normal, by=labeler)
    assert Batch.objects.get(pk=normal.batch_id).status == "active"
    again = Draft.objects.get(task=normal, labeler=labeler).shown_order
    tasks._make_draft(normal.pk, labeler, timezone.now())
    assert Draft.objects.get(task=normal, labeler=labeler).shown_order == again
