"""Intake: what comes in waits, is checked, is held where something is found, and is opened or refused by a person."""

import json
import random
import threading
from pathlib import Path

import pytest
from django.db import IntegrityError, connection, transaction
from django.urls import reverse

from labeling import jobs, likeness, personal_data
from labeling.actions import batches, capture, exports, gateway_keys, imports, intake
from labeling.errors import Conflict, Invalid
from labeling.models import Author, Export, Finding, Import, Intake, IntakeDecision, Prompt, Task
from labeling.normalisation import normalise
from tests import builders

pytestmark = pytest.mark.django_db
LABELLED = Path(__file__).with_name("personal_data.jsonl")
PERSONAL = [
    "You can reach me under jo.march{n}@mail.example.net at any time.",
    "My sister's number is (617) 555-01{n:02}, she was there too.",
    "The police noted my social security number, 219-09-99{n:02}, as well.",
    "He wanted it on his card 4111 1111 1111 1111 at once, number {n}.",
    "Somebody logged in from 203.0.113.{n} on that evening.",
]


def bring(*rows: dict | str, **fields) -> dict[str, int]:
    """Import prompts as by API; the counts."""
    given = [{"prompt": row} if isinstance(row, str) else row for row in rows]
    return imports.import_rows(kind="prompts", rows=[row | fields for row in given], by=None)


def states() -> dict[str, str]:
    return {prompt.text: prompt.intake for prompt in Prompt.objects.all()}


def essay(seed: int, words: int = 60) -> str:
    """A text of its own: no two seeds share three words in a row, but by chance."""
    rng = random.Random(seed)
    return " ".join("".join(rng.choices("abcdefghij", k=5)) for _ in range(words))


# ---- what is found ----------------------------------------------------------------------------------------------------


def test_personal_data_of_a_labelled_set_is_found():
    found = missed = wrong = 0
    for line in LABELLED.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        text, want = row["text"], []
        for kind, piece in row["personal"]:
            start = text.index(piece)
            want.append(personal_data.Found(kind, start, start + len(piece)))
        got = personal_data.find(text)
        hits = [w for w in want if any(w.kind == g.kind and w.start < g.end and g.start < w.end for g in got)]
        found, missed = found + len(hits), missed + len(want) - len(hits)
        wrong += sum(not any(w.kind == g.kind and w.start < g.end and g.start < w.end for w in want) for g in got)
    assert found / (found + wrong) >= 0.98, "precision"
    assert found / (found + missed) >= 0.92, "recall: names and street addresses have no form, and are missed"


def test_a_long_text_costs_little_however_it_is_made():
    for text in ("a@" * 20_000, "1 " * 20_000, "::" * 20_000, "0-" * 20_000, "x" * 200_000, "http://" * 20_000):
        assert personal_data.find(text) == [] or text.startswith("http")


@pytest.mark.parametrize(
    ("a", "b", "is_near"),
    [
        ("Name a fruit.", "name  a FRUIT", True),
        ("What is 2+2?", "What is 2-2?", False),
        (
            "Tell me a story with a fox, a coin and the cave.",
            "Tell me a story with a fox, a coin and the tower.",
            False,
        ),
        (essay(1), essay(1).replace(" ", "\n"), True),
        (essay(1), essay(1) + " one more sentence that was not there before", True),
        (essay(1), essay(2), False),
    ],
)
def test_near_copies(a, b, is_near):
    a, b = (likeness.flat([{"role": "user", "content": text}]) for text in (a, b))
    assert likeness.is_near(a, b) == is_near
    assert bool(set(likeness.keys_of(a)) & set(likeness.keys_of(b))) == is_near


def test_a_beginning_must_be_long_and_most_of_the_text():
    common, half = essay(1, 80), essay(1, 40)
    assert likeness.begin_alike(common, common + " " + essay(2, 80))  # a conversation gone on with
    assert not likeness.begin_alike(half + essay(2, 200), half + essay(3, 200))  # an instruction before other texts
    assert not likeness.begin_alike("Name a fruit.", "Name a fruit. Then another.")


def test_texts_are_normalised_and_the_original_is_kept():
    came = "Cafe\u0301\r\nau\u200b lait\x07"
    assert bring(came)["prompts_new"] == 1
    prompt = Prompt.objects.get()
    assert prompt.text == "Café\nau lait" == normalise(prompt.text)
    assert prompt.original == [{"role": "user", "content": came}]
    assert bring("Café\nau lait", "Café\r\nau lait")["prompts_present"] == 1
    assert bring("Two\r\nlines")["prompts_new"] == 1
    assert Prompt.objects.latest("id").original is None  # line ends alone are nothing to keep
    with pytest.raises(Invalid, match=r"rows\[1\]: field prompt: empty"):
        bring("Fine", "\u200b\u2060")


# ---- real data ----------------------------------------------------------------------------------------------------------


def edited(post: str, rng: random.Random) -> str:
    """A near copy: some words changed, a sentence added or dropped, other spacing and case."""
    words = post.split(" ")
    for place in rng.sample(range(len(words)), max(1, len(words) // 40)):
        words[place] = rng.choice(["something", "maybe", "really", "then"])
    text = " ".join(words)
    return rng.choice(
        [text.upper, lambda: text + "\n\nThanks for reading all of this.", lambda: text.replace(". ", ".  ")]
    )()


def test_planted_among_real_posts_and_nothing_else_is_held(tmp_path):
    """40 of the 100 TL;DR posts get personal data, 40 others a near copy; what is held is exactly that, and nothing is lost."""
    posts, rng = sorted(builders.tldr_posts()), random.Random(0)
    rng.shuffle(posts)
    rows = dict.fromkeys(posts[40:], "")
    for n, post in enumerate(posts[:40]):
        rows[post.replace("\n", f"\n{PERSONAL[n % 5].format(n=n)}\n", 1)] = "personal_data"
    for post in posts[60:]:
        rows[edited(post, rng)] = "near_copy"
    file = tmp_path / "posts.jsonl"
    file.write_text("".join(json.dumps({"prompt": text, "metadata": {"is": why}}) + "\n" for text, why in rows.items()))
    record = imports.import_prompts(path=file, by=None)
    assert record.counts == {"rows": 140, "prompts_new": 140, "prompts_present": 0, "prompts_held": 80}
    for prompt in Prompt.objects.prefetch_related("findings"):
        reasons = {finding.reason for finding in prompt.findings.all()}
        assert (prompt.intake, reasons - {"same_beginning"}) == (
            ("held", {prompt.metadata["is"]}) if prompt.metadata["is"] else ("open", set())
        )
        assert prompt.language == "en"
    finding = Finding.objects.filter(reason="personal_data").first()
    (span,) = finding.spans
    assert finding.prompt.messages[0]["content"][span["start"] : span["end"]] in " ".join(
        text.format(n=n) for text in PERSONAL for n in range(40)
    )
    assert imports.import_prompts(path=file, by=None).counts == {"rows": 140, "prompts_new": 0, "prompts_present": 140}


def test_real_files_come_in_whole():
    contexts = [*builders.tldr_posts()]
    seeds = [json.loads(line) for line in builders.shared_file("self_instruct_seed_tasks.jsonl").open()]
    bring(*contexts, *({"prompt": each["instruction"], "external_id": each["id"]} for each in seeds))
    assert (
        Prompt.objects.count() == Prompt.objects.opened().count() == 100 + len({each["instruction"] for each in seeds})
    )


# ---- states -------------------------------------------------------------------------------------------------------------


def test_only_open_prompts_are_ordered_listed_and_exported():
    bring("Open one.", "Write to a@b.example.")
    waiting = builders.prompt("Waiting one.", intake=Intake.WAITING)
    held = Prompt.objects.get(intake="held")
    assert states() == {"Open one.": "open", "Write to a@b.example.": "held", "Waiting one.": "waiting"}
    batch = batches.create_batch(name="all", kind="demonstration", by=None)
    assert batch.counts["tasks"] == 1
    for prompt, state in ((held, "held"), (waiting, "waiting")):
        with pytest.raises(Invalid, match=f"{prompt.uuid} is not open .intake: {state}"):
            batches.create_batch(name="named", kind="demonstration", prompt_ids=[prompt.uuid], by=None)
        with pytest.raises(IntegrityError, match="is not open"), transaction.atomic():
            Task.objects.create(batch=batch, prompt=prompt, kind="demonstration")
    with pytest.raises(IntegrityError, match="it stays open"), transaction.atomic():
        Prompt.objects.filter(tasks__isnull=False).update(intake="held")
    Prompt.objects.filter(pk=held.pk).update(intake="refused")
    assert intake.check_waiting() and not Prompt.objects.filter(intake="waiting").exists()


def test_an_export_holds_open_prompts_alone(settings, tmp_path):
    settings.EXPORT_DIR = tmp_path
    bring({"prompt": "Open one.", "demonstration": "Yes."}, {"prompt": "Write to a@b.example.", "demonstration": "No."})
    export = exports.build(query={}, by=None)
    assert (export.counts["prompts"], export.counts["demonstrations"]) == (1, 1)
    assert "b.example" not in (export.folder / "prompts.jsonl").read_text()
    assert Export.objects.count() == 1


def test_many_prompts_are_left_to_the_worker(monkeypatch):
    monkeypatch.setattr(intake, "INLINE", 2)
    monkeypatch.setattr(intake, "AT_ONCE", 2)
    counts = bring(*(f"Question {n}?" for n in range(4)), "Call (415) 555-0132.")
    assert counts["prompts_waiting"] == 5 and set(states().values()) == {"waiting"}
    assert not intake.check_waiting(seconds=0)
    jobs.check_prompts()
    record = Import.objects.get()
    assert (record.checked, record.held, Prompt.objects.opened().count()) == (5, 1, 4)


@pytest.mark.django_db(transaction=True)
def test_two_at_once_check_each_prompt_once(monkeypatch):
    monkeypatch.setattr(intake, "INLINE", 0)
    monkeypatch.setattr(intake, "AT_ONCE", 3)
    bring(*(essay(n) for n in range(6)), *(essay(n).upper() for n in range(6)))

    def check() -> None:
        intake.check_waiting()
        connection.close()

    threads = [threading.Thread(target=check) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not Prompt.objects.filter(intake="waiting").exists()
    assert Finding.objects.filter(reason="near_copy").count() == 6 == Prompt.objects.filter(intake="held").count()
    record = Import.objects.get()
    assert (record.checked, record.held) == (12, 6)


def test_too_many_of_one_author_or_organization_are_held(settings, labeler):
    settings.PROMPTS_PER_AUTHOR, settings.PROMPTS_PER_ORGANIZATION = 2, 3
    bring(*(f"By one: {n}?" for n in range(4)), author="one")
    bring(
        {"prompt": "By one: 9?", "author": "one"}, *({"prompt": f"Of O: {n}?", "organization": "O"} for n in range(5))
    )
    held = {f.prompt.text: f.reason for f in Finding.objects.select_related("prompt")}
    assert held == {
        "By one: 2?": "author_full",
        "By one: 3?": "author_full",
        "By one: 9?": "author_full",
        "Of O: 3?": "organization_full",
        "Of O: 4?": "organization_full",
    }
    author = Author.objects.create(key="labeler", user=labeler, split="train")
    for n in range(3):  # they write for us: as many as they like
        builders.prompt(f"Written {n}?", author=author, source="labeler", intake="waiting")
    assert intake.check_waiting() and Prompt.objects.opened().filter(author=author).count() == 3


def test_pairs_of_one_writing_are_no_copies_of_each_other():
    for n in range(3):
        builders.prompt(essay(1) + f" {n}", intake="waiting", source="labeler", metadata={"writing": "same"})
    builders.prompt(essay(1) + " 4", intake="waiting", source="labeler", metadata={"writing": "other"})
    intake.check_waiting()
    assert [p.intake for p in Prompt.objects.order_by("id")] == ["open", "open", "open", "held"]


def test_what_the_gateway_captures_is_checked():
    key = gateway_keys.create(organization="Acme", name="app", may_train=True, by=None)[0]
    asker = capture.Asker(key_id=key.pk, organization="Acme", user="u")
    said = [{"role": "user", "content": "Mail me: a@b.example\r\n\x07"}]
    assert capture.capture(messages=said, asker=asker) == capture.Outcome.CAPTURED
    prompt = Prompt.objects.get()
    assert (prompt.intake, prompt.text, prompt.original) == ("waiting", "Mail me: a@b.example\n", said)
    jobs.check_prompts()
    prompt.refresh_from_db()
    assert prompt.intake == "held"


def test_splits_stay_when_many_more_come():
    bring(*({"prompt": f"First of {n}?", "author": f"author {n}"} for n in range(50)))
    before = dict(Author.objects.values_list("key", "split"))
    bring(*({"prompt": f"Later {m} of {n}?", "author": f"author {n}"} for n in range(100) for m in range(3)))
    after = dict(Author.objects.values_list("key", "split"))
    assert before.items() <= after.items() and len(after) == 100
    assert all(prompt.split == after[prompt.author.key] for prompt in Prompt.objects.select_related("author"))


# ---- deciding -----------------------------------------------------------------------------------------------------------


def test_a_person_releases_or_refuses(researcher):
    bring("Write to a@b.example.", "Call (415) 555-0132.")
    public, private = Prompt.objects.order_by("id")
    with pytest.raises(Invalid, match="why"):
        intake.decide(prompts=[public.uuid], verdict="released", comment=" ", by=researcher)
    with pytest.raises(Invalid, match="2001 characters"):
        intake.decide(prompts=[public.uuid], verdict="released", comment="x" * 2001, by=researcher)
    assert intake.decide(prompts=[public.uuid], verdict="released", comment="A made-up address.", by=researcher) == 1
    assert intake.decide(prompts=[public.uuid], verdict="released", comment="Again.", by=researcher) == 0
    assert intake.decide(prompts=[private.uuid], verdict="refused", comment="Somebody's.", by=researcher) == 1
    assert list(states().values()) == ["open", "refused"]
    made = IntakeDecision.objects.get(prompt=public)
    assert (made.verdict, made.comment, made.decided_by) == ("released", "A made-up address.", researcher)
    with pytest.raises(IntegrityError, match="kept as they were written"), transaction.atomic():
        IntakeDecision.objects.update(comment="Another.")
    assert intake.decide(prompts=[public.uuid], verdict="refused", comment="On second thought.", by=researcher) == 1
    assert intake.decide(prompts=intake.held(state="refused"), verdict="released", comment="All.", by=researcher) == 2
    builders.task(builders.batch(), Prompt.objects.get(pk=public.pk))
    waiting = builders.prompt("New.", intake="waiting")
    for prompt, why in ((public, "labeled already"), (waiting, "still being checked")):
        with pytest.raises(Conflict, match=why):
            intake.decide(prompts=[private.uuid, prompt.uuid], verdict="refused", comment="No.", by=researcher)
    assert Prompt.objects.get(pk=private.pk).intake == "open"  # one is not decided without the other


def test_the_console_shows_what_is_held_and_decides(client_for, researcher):
    client = client_for(researcher)
    bring("Write to a@b.example, or else.", essay(1), essay(1).upper(), "A good one.")
    url, listed = reverse("intake"), client.get(reverse("intake")).text
    assert '<mark title="e-mail address">a@b.example</mark>' in listed and "A good one." not in listed
    assert "near copy" in client.get(url + "?reason=near_copy").text
    assert "a@b.example" not in client.get(url + "?reason=near_copy").text
    record = Import.objects.get()
    assert "a@b.example" in client.get(f"{url}?file={record.pk}").text
    assert f"?file={record.pk}" in client.get(reverse("imports")).text
    private = Prompt.objects.get(findings__reason="personal_data")
    empty = client.post(url, {"seen": [private.uuid], "verdict": "refused", "comment": " "})
    assert (empty.status_code, empty.text.count("checked>")) == (422, 2)  # the row, and which rows
    assert client.post(url, {"verdict": "refused", "comment": "Private."}).status_code == 422
    assert client.post(url, {"seen": ["x"], "verdict": "refused", "comment": "Private."}).status_code == 422
    assert set(Prompt.objects.values_list("intake", flat=True)) == {"open", "held"}
    for _twice in range(2):
        sent = client.post(url, {"seen": [private.uuid], "verdict": "refused", "comment": "Private."})
        assert sent.status_code == 302
    assert IntakeDecision.objects.get().comment == "Private."
    newest = Prompt.objects.latest("id").pk
    bring("Later: c@d.example")  # not yet there when the page was made
    everything = {"which": "all", "newest": newest, "verdict": "released", "comment": "Other words."}
    assert client.post(url + "?reason=near_copy", everything).status_code == 302
    assert sorted(states().values()) == ["held", "open", "open", "open", "refused"]
    assert "Other words." in client.get(url + "?state=released").text
    page = reverse("intake_prompt", args=[private.uuid])
    assert "Private." in client.get(page).text
    assert client.post(page, {"verdict": "released", "comment": ""}).status_code == 422
    assert client.post(page, {"verdict": "released", "comment": "Made up."}).status_code == 302
    assert Prompt.objects.get(pk=private.pk).intake == "open"
