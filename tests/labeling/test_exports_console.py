"""Exports by page: ordered as a job, downloaded as they were written."""

import hashlib
import io
import zipfile

import pytest
from django.urls import reverse
from procrastinate.contrib.django.models import ProcrastinateJob

from labeling import jobs
from labeling.models import Export
from tests.labeling.rows import make_demonstration_batch, make_ranking_batch, submit
from training.contract import read_export

pytestmark = pytest.mark.django_db
STANDARD = {"review": ["accepted", "unreviewed"], "origins": ["import", "person"]}


@pytest.fixture(autouse=True)
def export_dir(settings, tmp_path):
    settings.EXPORT_DIR = tmp_path / "exports"


@pytest.fixture
def labels(labeler):
    submit(make_demonstration_batch(prompts=1).tasks.get(), labeler)
    submit(make_ranking_batch().tasks.get(), labeler)


def order(client, **data):
    return client.post(reverse("exports"), STANDARD | data)


def built(client, **data) -> Export:
    """Order an export and do what the worker does."""
    pk = int(order(client, **data)["Location"].rstrip("/").split("/")[-1])
    jobs.build_export(export_id=pk)
    return Export.objects.get(pk=pk)


def test_ordering_makes_a_row_and_a_job(researcher_client, researcher, labels):
    response = order(researcher_client)
    export = Export.objects.get()
    assert response["Location"] == reverse("export", args=[export.pk])
    assert (export.status, export.created_by) == ("building", researcher)
    assert ProcrastinateJob.objects.get(task_name="build_export").args == {"export_id": export.pk}
    page = researcher_client.get(response["Location"])
    assert "Being built" in page.text


def test_a_double_click_orders_one(researcher_client, labels):
    assert order(researcher_client)["Location"] == order(researcher_client)["Location"]
    assert Export.objects.count() == 1


def test_the_page_looks_again_until_it_is_ready(researcher_client, labels):
    url = order(researcher_client)["Location"]
    waiting = researcher_client.get(url, headers={"HX-Request": "true"})
    assert "HX-Refresh" not in waiting
    assert "<html" not in waiting.text
    jobs.build_export(export_id=Export.objects.get().pk)
    assert researcher_client.get(url, headers={"HX-Request": "true"})["HX-Refresh"] == "true"


def test_a_ready_export_is_shown_and_downloads_byte_for_byte(researcher_client, labels):
    export = built(researcher_client)
    page = researcher_client.get(reverse("export", args=[export.pk])).text
    assert export.data_sha256 in page
    for name in ["manifest.json", *export.manifest["files"]]:
        response = researcher_client.get(reverse("export_file", args=[export.pk, name]))
        assert "attachment" in response["Content-Disposition"]
        assert response.getvalue() == (export.folder / name).read_bytes()
        if name in export.manifest["files"]:
            assert export.manifest["files"][name]["sha256"] in page


def test_the_zip_unpacks_to_the_export(researcher_client, labels, tmp_path):
    export = built(researcher_client)
    response = researcher_client.get(reverse("export_zip", args=[export.pk]))
    assert response.streaming
    packed = response.getvalue()
    assert response["Content-Type"] == "application/zip" and len(packed) == int(response["Content-Length"])
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path / "out")
    unpacked = read_export(tmp_path / "out" / export.name)
    assert unpacked.manifest.data_sha256 == export.data_sha256
    files = {path.name: path.read_bytes() for path in (tmp_path / "out" / export.name).iterdir()}
    assert files == {name: (export.folder / name).read_bytes() for name in ["manifest.json", *export.manifest["files"]]}


def test_a_zip_that_broke_off_goes_on_wherever_that_was(researcher_client, labels):
    export = built(researcher_client)
    url = reverse("export_zip", args=[export.pk])
    whole = researcher_client.get(url)
    packed, tag = whole.getvalue(), whole["ETag"]
    assert researcher_client.head(url)["Content-Length"] == str(len(packed))
    for at in (0, 1, 29, len(packed) // 3, len(packed) - 30, len(packed) - 1):  # in headers, files, and the directory
        answer = researcher_client.get(url, headers={"Range": f"bytes={at}-", "If-Range": tag})
        assert (answer.status_code, answer.getvalue(), answer["ETag"]) == (206, packed[at:], tag)
        assert answer["Content-Range"] == f"bytes {at}-{len(packed) - 1}/{len(packed)}"
    assert researcher_client.get(url, headers={"Range": f"bytes={len(packed)}-"}).status_code == 416
    assert researcher_client.get(url, headers={"If-None-Match": tag}).status_code == 304
    again = built(researcher_client, surplus="on")  # other data, or here another manifest: another version
    other = researcher_client.get(
        reverse("export_zip", args=[again.pk]), headers={"Range": "bytes=9-", "If-Range": tag}
    )
    assert (other.status_code, other["ETag"] != tag) == (200, True)


def test_the_same_data_again_is_the_same_export(researcher_client, labels):
    first = built(researcher_client)
    again = built(researcher_client)
    page = researcher_client.get(reverse("export", args=[again.pk]), follow=True)
    assert page.redirect_chain[-1][0] == reverse("export", args=[first.pk])
    assert "Nothing has changed since" in page.text


def test_the_selection_is_what_was_ticked(researcher_client, labels):
    export = built(researcher_client, batches=["demos"], splits=["train", "valid", "test"], surplus="on")
    assert export.query["batches"] == ["demos"]
    assert export.query["surplus"] is True
    assert export.counts["rankings"] == 0
    assert export.counts["demonstrations"] == 1


@pytest.mark.parametrize("data", [{"review": []}, {"origins": []}, {"origins": ["robot"]}, {"batches": ["nobody"]}])
def test_a_senseless_selection_is_refused(researcher_client, labels, data):
    assert order(researcher_client, **data).status_code == 422
    assert not Export.objects.exists()


def test_only_files_of_the_manifest_are_given_out(researcher_client, labels):
    export = built(researcher_client)
    (export.folder / "secret.txt").write_text("no")
    for name in ("secret.txt", "..", "%2e%2e%2fsecret.txt", "..%2F..%2Fmanage.py", "nothing.jsonl"):
        url = reverse("export", args=[export.pk]) + f"files/{name}"
        assert researcher_client.get(url).status_code == 404


@pytest.mark.parametrize("status", ["building", "failed"])
def test_an_export_without_files_gives_none(researcher_client, status):
    export = Export.objects.create(query={}, status=status, error="the disk is full")
    for name in ("export_zip", "export_file"):
        args = [export.pk, "manifest.json"] if name == "export_file" else [export.pk]
        assert researcher_client.get(reverse(name, args=args)).status_code == 404
    page = researcher_client.get(reverse("export", args=[export.pk])).text
    assert ("the disk is full" in page) == (status == "failed")
    assert researcher_client.get(reverse("exports")).status_code == 200


def test_a_download_that_broke_off_goes_on(researcher_client, labels):
    export = built(researcher_client)
    url = reverse("export_file", args=[export.pk, "rankings.jsonl"])
    data = (export.folder / "rankings.jsonl").read_bytes()
    whole = researcher_client.get(url)
    tag = whole["ETag"]
    assert (b"".join(whole), whole["Accept-Ranges"], tag) == (data, "bytes", f'"{hashlib.sha256(data).hexdigest()}"')
    assert int(researcher_client.head(url)["Content-Length"]) == len(data)

    def ask(text: str, **headers):
        answer = researcher_client.get(url, headers={"Range": text, **headers})
        content = b"" if answer.status_code in (304, 416) else b"".join(answer)
        return answer.status_code, content, answer.get("Content-Range")

    size = len(data)
    assert ask("bytes=100-") == (206, data[100:], f"bytes 100-{size - 1}/{size}")
    assert ask("bytes=0-9") == (206, data[:10], f"bytes 0-9/{size}")
    assert ask("bytes=-7") == (206, data[-7:], f"bytes {size - 7}-{size - 1}/{size}")
    assert ask("bytes=5-999999999") == (206, data[5:], f"bytes 5-{size - 1}/{size}")
    assert ask(f"bytes={size}-") == (416, b"", f"bytes */{size}")
    assert ask("bytes=9-5") == ask("bytes=0-1,3-4") == ask("lines=1-2") == (200, data, None)
    assert ask("bytes=5-", **{"If-Range": '"another"'}) == (200, data, None)
    assert ask("bytes=5-", **{"If-Range": tag})[0] == 206
    assert ask("bytes=5-", **{"If-None-Match": tag})[0] == 304


def test_days_schema_agreement_and_pairs_are_chosen_by_page(researcher_client, labels):
    choice = {"since": "2020-01-31", "until": "", "schemas": ["1"], "min_agreement": "0.5", "pairs": "on"}
    export = built(researcher_client, **choice)
    added = {"since": "2020-01-31", "schemas": [1], "min_agreement": 0.5, "pairs": True}
    assert {name: export.query.get(name) for name in added} == added
    assert "until" not in export.query
    page = researcher_client.get(reverse("export", args=[export.pk])).text
    assert "2020-01-31" in page
    assert "pairs_train.parquet" in page
    wrong = order(researcher_client, since="31.1.2020", min_agreement="2")
    assert wrong.status_code == 422
    assert 'value="31.1.2020"' in wrong.text
