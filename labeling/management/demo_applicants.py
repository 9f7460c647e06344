"""The demo's applicants: one in the middle of the screening, one who waits for a decision. Through the actions that people use."""

from labeling.actions import applications, exercises, screenings
from labeling.models import Attempt, Exercise, Part, Screening, User

MIDWAY = "midway@demo.example"
WAITING = "candidate@demo.example"
TEXT = (
    "That sounds heavy, and it makes sense that it stays on your mind. There is no single right answer, but a few things help many "
    "people: talk to one person you trust, take one small step at a time, and be patient with yourself.\n\n"
    "If somebody may be in danger, do not keep it to yourself: call the emergency number, or a crisis line where you live."
)


def make_applicants(*, grader: User) -> None:
    """Both of them, once. One demonstration of the one who waits has its first grade."""
    for email, is_whole in ((MIDWAY, False), (WAITING, True)):
        person = User.objects.get(email=email)
        if hasattr(person, "application"):
            continue
        applications.save(
            name=person.name, why="I like to weigh words, and I would like to see what becomes of them.", languages="English, French",
            hours_per_week=12, availability="Weekday evenings, UTC+1", consents=True, send=True, by=person,
        )  # fmt: skip
        if Exercise.objects.filter(purpose="screening", retired_at=None).exists():
            screening = screenings.begin(by=person)
            _answer(screening, is_whole)
            if is_whole:
                _hand_in(screening, grader)


def _answer(screening: Screening, is_whole: bool) -> None:
    """All items, or those of the first part alone. The first flag and the first ranking differ from the reference."""
    for number, attempt in enumerate(screening.attempts.select_related("exercise").order_by("position")):
        if is_whole or attempt.exercise.part == Part.FLAGGING:
            exercises.save_attempt(attempt=attempt, content=_content(attempt, is_first=number == 0), by=screening.user)


def _content(attempt: Attempt, *, is_first: bool) -> dict:
    reference = attempt.exercise.reference
    if attempt.exercise.part == Part.DEMONSTRATION:
        return {"text": TEXT}
    if attempt.exercise.part == Part.RANKING:
        return {"tiers": [[response] for tier in reference["tiers"] for response in tier]}  # never a tie
    return {"prompt_flags": {name: value != is_first for name, value in reference["prompt_flags"].items()}}


def _hand_in(screening: Screening, grader: User) -> None:
    rules, sure = screening.rules, ("yes", "partly", "yes", "no", "unsaid")
    said = [{name: sure[n % len(sure)] for n, name in enumerate(names)} for names in (rules.groups, rules.topics)]
    screenings.save_self_assessment(
        screening=screening,
        groups=said[0],
        topics=said[1],
        comment="I grew up between two languages.",
        by=screening.user,
    )
    screenings.hand_in(screening=screening, by=screening.user)
    written = screening.attempts.filter(exercise__part=Part.DEMONSTRATION).first()
    if written:
        screenings.grade(attempt=written, grade=6, comment="Kind and calm; could be more to the point.", by=grader)
