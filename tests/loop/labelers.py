"""Simulated people at work in the web half: marked as such, and acting through the same actions as real ones.

Needs Django set up. Each takes the next task, answers it by the hidden preference, and hands it in; a reviewer accepts.
"""

import itertools
import uuid
from collections.abc import Callable, Iterable

from tqdm import tqdm

from labeling.actions import reviews, submissions, tasks
from labeling.models import Group, Kind, Role, Slot, Submission, Task, TaskResponse, User
from tests.loop import preference
from training import tinyworld

TRAINING_LABELERS, HELD_OUT_LABELERS = 6, 2
CHUNK = 500


class Workforce:
    """The simulated labelers of one loop, and the reviewer who accepts their work."""

    def __init__(self, seed: int):
        self.seed = seed
        groups = [Group.TRAINING] * TRAINING_LABELERS + [Group.HELD_OUT] * HELD_OUT_LABELERS
        self.people = [self._hire(f"simulated-{i}", group) for i, group in enumerate(groups)]
        self.reviewer = User.objects.create_user("reviewer@loop.example", name="Loop reviewer")
        self.reviewer.grant(Role.REVIEWER)

    def _hire(self, name: str, group: str) -> tuple[User, preference.Labeler]:
        user = User.objects.create_user(f"{name}@loop.example", name=name, group=group, is_simulated=True)
        user.grant(Role.LABELER)
        return user, preference.Labeler(name, self.seed)

    def work(self, kind: str) -> int:
        """Label until nobody is given a task any more, then have everything accepted. Returns the submissions made."""
        answer = {Kind.DEMONSTRATION: self._demonstrate, Kind.RANKING: self._rank}[kind]
        open_seats = Slot.objects.filter(kind=kind, status=Slot.Status.OPEN, batch__status="active").count()
        with tqdm(total=open_seats, desc=f"label {kind}s", unit="task", disable=None) as bar:
            made = sum(1 for _ in self._take_turns(kind, answer, bar))
        self._accept_all()
        return made

    def _take_turns(self, kind: str, answer: Callable, bar: tqdm) -> Iterable[Submission]:
        """One task each in turn; whoever finds the queue empty goes home."""
        present = list(self.people)
        while present:
            for person in list(present):
                user, labeler = person
                slot = tasks.claim_next(kind=kind, by=user)
                if slot is None:
                    present.remove(person)
                    continue
                task = Task.objects.select_related("prompt", "batch__schema").get(pk=slot.task_id)
                yield submissions.submit(task=task, submit_key=uuid.uuid4(), answer=answer(task, labeler), by=user)
                bar.update()

    def _demonstrate(self, task: Task, labeler: preference.Labeler) -> dict:
        return {"text": tinyworld.demonstration(task.prompt.text, self.seed)}

    def _rank(self, task: Task, labeler: preference.Labeler) -> dict:
        rows = TaskResponse.objects.filter(task=task).values_list("response__uuid", "response__text")
        ids, texts = zip(*((str(i), text) for i, text in rows.order_by("response__uuid")), strict=True)
        judged = labeler.rank(task.prompt.text, texts)
        rated = zip(ids, judged.ratings, judged.flags, strict=True)
        return {
            "tiers": [[ids[i] for i in tier] for tier in judged.tiers],
            "ratings": {i: {"quality": quality, "flags": flags} for i, quality, flags in rated},
            "all_bad": judged.all_bad,
        }

    def _accept_all(self) -> None:
        waiting = Submission.objects.filter(status=Submission.Status.SUBMITTED).values_list("uuid", "revision_count")
        for chunk in _batched(waiting, CHUNK):
            reviews.accept_many(seen=dict(chunk), by=self.reviewer)


def _batched(rows: Iterable, size: int) -> Iterable[list]:
    iterator = iter(rows)
    return iter(lambda: list(itertools.islice(iterator, size)), [])


def agreement() -> tuple[float, int]:
    """(share of pairs on which two labelers of one task agree, pairs that both order), over all tasks ranked twice."""
    rankings = Submission.objects.filter(kind=Kind.RANKING).order_by("task_id", "id").prefetch_related("revisions")
    agreed = compared = 0
    for _task, group in itertools.groupby(rankings, key=lambda submission: submission.task_id):
        levels = [_levels(submission) for submission in group]
        for first, second in itertools.combinations(levels, 2):
            pairs = [
                (a, b) for a, b in itertools.combinations(first, 2) if first[a] != first[b] and second[a] != second[b]
            ]
            agreed += sum((first[a] < first[b]) == (second[a] < second[b]) for a, b in pairs)
            compared += len(pairs)
    return agreed / max(1, compared), compared


def _levels(submission: Submission) -> dict[str, int]:
    """Response id → tier number, 0 the best."""
    newest = max(submission.revisions.all(), key=lambda revision: revision.number)
    return {response: level for level, tier in enumerate(newest.tiers) for response in tier}
