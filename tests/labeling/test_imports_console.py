"""Imports by page: a file goes in whole or leaves nothing but its errors."""

import json

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.urls import reverse

from labeling.actions import imports
from labeling.models import Import, Prompt, Response
from tests.conftest import PASSWORD

pytestmark = pytest.mark.django_db


def upload(client, content: bytes | str, name="rows.jsonl", **data):
    file = SimpleUploadedFile(name, content.encode() if isinstance(content, str) else content)
    defaults = {"kind": "prompts", "format": "heed", "map": "", "constant": "", "template": ""}
    return client.post(reverse("imports"), defaults | {"file": file} | data, follow=True)


def lines(*rows: dict) -> str:
    return "\n".join(json.dumps(row) for row in rows)


def test_prompts_go_in_and_a_second_time_adds_nothing(researcher_client, researcher):
    content = lines({"prompt": "One?"}, {"prompt": "Two?", "use_case": "qa"})
    for _ in range(2):
        page = upload(researcher_client, content)
        assert page.status_code == 200
        assert "rows.jsonl went in" in page.text
    assert Prompt.objects.count() == 2
    assert Import.objects.first().created_by == researcher


def test_responses_with_columns_of_other_names(researcher_client):
    content = 'context,sample,model_type\n"A post.","Short.",gpt\n"A post.","Shorter.",sft\n'
    columns = {"map": "prompt=context\r\nresponse=sample\r\n\r\nmodel=model_type", "constant": "use_case=tldr"}
    page = upload(researcher_client, content, "tldr.csv", kind="responses", **columns)
    assert page.status_code == 200
    assert Prompt.objects.get().use_case == "tldr"
    assert set(Response.objects.values_list("model_version__name", "text")) == {("gpt", "Short."), ("sft", "Shorter.")}


@pytest.mark.parametrize(
    ("content", "name", "data", "said"),
    [
        (lines({"prompt": "Fine."}, {"prompt": ""}), "rows.jsonl", {}, "rows.jsonl line 2"),
        (lines({"prompt": "Fine."}) + "\n{broken", "rows.jsonl", {}, "rows.jsonl line 2"),
        (lines({"prompt": "Fine.", "colour": "red"}), "rows.jsonl", {}, "colour"),
        (b'{"prompt": "\xff"}', "rows.jsonl", {}, "rows.jsonl line 1"),
        ("prompt\nFine.\n", "rows.txt", {}, "rows.txt"),
        (lines({"prompt": "Fine."}), "rows.jsonl", {"map": "prompt"}, "prompt"),
        (lines({"prompt": "Fine."}), "rows.jsonl", {"map": "colour=x"}, "colour"),
        (lines({"prompt": "x" * 5_000_000}), "rows.jsonl", {}, "rows.jsonl line 1"),
        ("", "rows.jsonl", {}, "empty"),
    ],
)
def test_a_refused_file_leaves_nothing_but_its_errors(researcher_client, content, name, data, said):
    page = upload(researcher_client, content, name, **data)
    assert page.status_code == 422
    assert said in page.text
    assert not Prompt.objects.exists()
    assert not Import.objects.exists()


def test_every_error_is_listed(researcher_client):
    page = upload(researcher_client, lines({"prompt": ""}, {"prompt": "ok"}, {"prompt": 7}))
    assert "rows.jsonl line 1" in page.text
    assert "rows.jsonl line 3" in page.text


def test_errors_are_said_in_the_readers_language(researcher_client, monkeypatch):
    def shouted(text: str) -> str:
        return text.replace(" line", " ZEILE").replace(": field", ": FELD").replace("empty", "LEER")

    for name in ("import_files", "import_formats", "import_rows", "imports"):
        monkeypatch.setattr(f"labeling.actions.{name}._", shouted)
    page = upload(researcher_client, lines({"prompt": ""}, {"prompt": "ok"}))
    assert "rows.jsonl ZEILE 1: FELD prompt" in page.text and "LEER" in page.text


def test_what_stands_in_a_file_is_shown_as_text(researcher_client):
    page = upload(researcher_client, lines({"prompt": "x", "<script>alert(1)</script>": 1}))
    assert page.status_code == 422
    assert "<script>alert" not in page.text


def test_a_file_too_long_for_a_page_is_sent_to_the_command(researcher_client, monkeypatch):
    monkeypatch.setattr(imports, "UPLOAD_MAX_BYTES", 10)
    page = upload(researcher_client, lines({"prompt": "Longer than ten bytes."}))
    assert page.status_code == 422
    assert "manage.py import_prompts" in page.text
    assert not Import.objects.exists()


def test_no_file_is_said(researcher_client):
    page = researcher_client.post(reverse("imports"), {"kind": "prompts", "format": "heed"})
    assert page.status_code == 422
    assert "This field is required" in page.text


def test_a_file_sent_after_the_session_ended_is_asked_for_again_and_the_rest_is_kept(researcher, client):
    client.force_login(researcher)
    client.get(reverse("imports"))
    del client.cookies["sessionid"]
    answer = upload(client, lines({"context": "x"}), map="prompt=context", kind="responses")
    client.post(answer.redirect_chain[-1][0], {"login": researcher.email, "password": PASSWORD})
    page = client.get(reverse("imports"))
    assert "the file did not arrive" in page.text and "prompt=context</textarea>" in page.text
    assert page.context["form"]["kind"].value() == "responses" and not Import.objects.exists()
    assert "the file did not arrive" not in client.get(reverse("imports")).text


def test_a_known_data_set_goes_in_by_its_name_and_what_stays_out_is_said(researcher_client):
    pair = {"chosen": "\n\nHuman: Why?\n\nAssistant: So.", "rejected": "\n\nHuman: Why?\n\nAssistant: Eh."}
    refused = upload(researcher_client, lines(pair), "train.jsonl")
    assert refused.status_code == 422
    assert "import them in the format hh-rlhf" in refused.text
    assert "columns found: chosen, rejected" in refused.text
    page = upload(researcher_client, lines(pair), "train.jsonl", format="hh-rlhf")
    assert page.status_code == 200
    assert Prompt.objects.get().text == "Why?"
    assert "left out responses" in page.text
