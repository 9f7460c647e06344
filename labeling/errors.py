"""Domain errors. Raised by actions with ids in the message; each door translates them once (HTML, API problem JSON, CLI)."""


class HeedError(Exception):
    """Something a person or a program asked for that Heed refuses. `status` is the HTTP answer at the edge."""

    status = 422
    code = "refused"


class Invalid(HeedError):
    """The input is wrong; the message names the place. `errors` lists every problem as {"place", "message"}."""

    code = "invalid"

    def __init__(self, message: str, errors: list[dict] | None = None):
        super().__init__(message)
        self.errors = errors or []


NAMED = 5


def refuse(problems: list[dict], *, between: str = " ") -> None:
    """Raise Invalid if there are any problems: its `errors` has all, its message the first few, each as place and message."""
    if problems:
        said = (f"{problem['place']}{between}{problem['message']}" for problem in problems[:NAMED])
        raise Invalid("; ".join(said), problems)


class Conflict(HeedError):
    """The rows have moved on since the asker looked: reload and decide again. Nothing was changed or lost."""

    status = 409
    code = "conflict"


class SavedElsewhere(Conflict):
    """Another page has saved other work on the same task since the asker last heard of it. Both are kept."""

    code = "saved_elsewhere"


class HandedInElsewhere(Conflict):
    """The task was handed in since the asker last heard of it. Asking again, knowing that, makes a correction."""

    code = "handed_in_elsewhere"


class OtherPerson(Conflict):
    """What is sent comes from a page that was made for another person than the one who is logged in now."""

    code = "other_person"


class NotPrepared(Conflict):
    """Something comes before the next task of this kind: `step` is "instructions" or "practice"."""

    code = "not_prepared"

    def __init__(self, message: str, *, kind: str, step: str):
        super().__init__(message)
        self.kind, self.step = kind, step


class Forbidden(HeedError):
    """This person may not do this."""

    status = 403
    code = "forbidden"


class Unavailable(HeedError):
    """Something that Heed depends on does not answer now; asking again later may work."""

    status = 503
    code = "unavailable"
