"""What pages show of the way in: what is due before a task, and the instructions in force beside it."""

from django import template

from labeling.actions import instructions, preparation
from labeling.models import Instructions, Task, User

register = template.Library()


@register.simple_tag
def steps_due(user: User) -> list[preparation.Due]:
    """What the labeler does before the next task of each kind."""
    return preparation.due(user)


@register.simple_tag
def instructions_for(task: Task) -> Instructions | None:
    """The instructions in force for a task."""
    return instructions.for_task(task)


@register.filter
def percent(share: float) -> str:
    """A share as a whole number of hundredths, rounded down: what stands below a cutoff never looks as if it reached it."""
    return str(int(share * 100 + 1e-9))
