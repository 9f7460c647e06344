"""Markdown from prompts and responses to HTML that is safe to show: no scripts, styles, images or forms, whatever is written."""

from functools import cache

import nh3
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe
from markdown_it import MarkdownIt

TAGS = {
    *("p", "br", "hr", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "pre", "code", "em", "strong", "s", "a"),
    *("ul", "ol", "li", "table", "thead", "tbody", "tr", "th", "td"),
}
ATTRIBUTES = {"a": {"href", "title"}, "ol": {"start"}, "code": {"class"}}
# Past this, a text is shown plainly: Markdown of 200,000 characters takes seconds and reads no better.
MAX_CHARS = 50_000


@cache
def _parser() -> MarkdownIt:
    """CommonMark with tables and strikethrough. A line break stays one, HTML is shown as written, images are not fetched."""
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True, "linkify": False})
    return parser.enable(["table", "strikethrough"]).disable("image")


def markdown(text: str) -> SafeString:
    """The text as sanitised HTML; as plain text when it is very long."""
    if len(text) > MAX_CHARS:
        return plain(text)
    html = nh3.clean(
        _parser().render(text),
        tags=TAGS,
        attributes=ATTRIBUTES,
        url_schemes={"http", "https", "mailto"},
        link_rel="noopener noreferrer nofollow",
        # What scrolls sideways can be reached by keyboard.
        set_tag_attribute_values={"a": {"target": "_blank"}, "pre": {"tabindex": "0"}, "table": {"tabindex": "0"}},
    )
    return mark_safe(html)  # noqa: S308 - nh3 has cleaned it


def plain(text: str) -> SafeString:
    """The text exactly as written, in a block that keeps its spaces."""
    return format_html('<div class="plain-text">{}</div>', text)
