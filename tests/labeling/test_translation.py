"""Every string of the interface goes through gettext: no bare text in templates, and a language is chosen per person."""

import re
from html.parser import HTMLParser

import pytest
from django.template.base import Lexer, TokenType
from django.test import override_settings

from tests.builders import ROOT

# 500.html is shown when nothing can be trusted to work, the translation included; button.html holds no words, but half a tag.
LEFT_OUT = {"templates/errors/500.html", "templates/500.html", "templates/allauth/elements/button.html"}
TEMPLATES = [
    path for path in sorted((ROOT / "templates").rglob("*.html")) if str(path.relative_to(ROOT)) not in LEFT_OUT
]
READ = {"alt", "aria-label", "placeholder", "title", "data-confirm", "data-label"}  # attributes that a person reads
NO_WORDS = {"Heed", "SHA", "manifest", "json"}  # names


class Texts(HTMLParser):
    """Collects what a person would read in a template's own HTML, outside of code, keys and scripts."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []
        self.silent = 0

    def handle_starttag(self, tag, attrs):
        self.silent += tag in {"script", "style", "kbd", "code", "pre"}
        self.found += [value for name, value in attrs if name in READ and value]

    def handle_endtag(self, tag):
        self.silent -= tag in {"script", "style", "kbd", "code", "pre"}

    def handle_data(self, data):
        if not self.silent:
            self.found.append(data)


def bare_texts(source: str) -> list[str]:
    """Texts with a word in them that stand in a template outside of translate and blocktranslate."""
    html, inside = [], False
    for token in Lexer(source).tokenize():
        name = token.contents.split(" ")[0] if token.token_type == TokenType.BLOCK else ""
        if name == "block" and token.contents.endswith("_class"):  # a class, not words
            inside = True
        elif name == "endblock":
            inside = False
        if name in {"blocktranslate", "endblocktranslate", "comment", "endcomment"}:
            inside = not name.startswith("end")
        html.append(token.contents if token.token_type == TokenType.TEXT and not inside else " ")
    parser = Texts()
    parser.feed("".join(html))
    return [
        text.strip() for text in parser.found if any(word not in NO_WORDS for word in re.findall(r"[^\W\d_]{2,}", text))
    ]


def test_the_check_finds_bare_text():
    source = '<p title="Bare">{% translate "said" %} Left {{ n }}</p>{% blocktranslate %}x y{% endblocktranslate %}<kbd>Esc</kbd>'
    assert bare_texts(source) == ["Bare", "Left"]


def test_no_template_holds_unmarked_text():
    found = {str(path.relative_to(ROOT)): texts for path in TEMPLATES if (texts := bare_texts(path.read_text()))}
    assert not found, found


@pytest.mark.django_db
def test_a_person_chooses_the_language(labeler_client):
    with override_settings(LANGUAGES=[("en", "English"), ("he", "עברית")]):
        page = labeler_client.get("/tasks/").text
        assert 'dir="ltr"' in page and 'value="he"' in page and "עברית" in page
        answer = labeler_client.post("/language/", {"language": "he", "next": "/history/"})
        assert answer.url == "/history/"
        assert '<html lang="he"' in labeler_client.get("/history/").text
        assert 'dir="rtl"' in labeler_client.get("/history/").text
    assert 'name="language"' not in labeler_client.get("/history/").text  # one language: no choice
