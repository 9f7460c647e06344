"""Filters of the console's pages."""

import json

from django import template

from labeling.views import readings

register = template.Library()


@register.filter
def clock(seconds: int) -> str:
    """Seconds as minutes and seconds, "2:05 min", or hours and minutes, "1:02 h"."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d} h"


@register.filter
def words(name: str) -> str:
    """The name of a count, to read: "left_out_responses" is "left out responses"."""
    return name.replace("_", " ")


@register.filter
def pretty_json(value) -> str:
    """JSON to read, keys as they stand."""
    return json.dumps(value, indent=2, ensure_ascii=False)


@register.filter
def figure(value) -> str:
    """A number of a manifest or an evaluation, shortened to four digits; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


@register.filter
def reason_words(reason: dict) -> str:
    """One reason of a review priority, in words with its figure."""
    return readings.reason_words(reason)


@register.filter
def percent(share: float | None) -> str:
    """A share from 0 to 1 in hundredths, rounded: "43 %"."""
    return readings.percent(share)


@register.filter
def hundredths(share: float | str | None) -> str:
    """A share from 0 to 1 in hundredths with a decimal, "72.6 %"; "–" where there is none."""
    return f"{100 * share:.1f} %" if isinstance(share, int | float) else "–"
