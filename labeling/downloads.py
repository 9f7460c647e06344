"""Files sent so that a download which broke off can go on: single byte ranges (RFC 9110, section 14), told apart by checksum."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from django.http import FileResponse, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase

BLOCK_BYTES = 2**18
ONE_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


def send(
    request: HttpRequest, path: Path, *, file_name: str, sha256: str, content_type: str | None = None
) -> HttpResponseBase:
    """The file as an attachment, or the range of it that was asked for, as `send_from`. `sha256` is its ETag."""
    size = path.stat().st_size
    return send_from(
        request, lambda: path.open("rb"), size=size, version=sha256, file_name=file_name, content_type=content_type
    )


def send_from(
    request: HttpRequest,
    opened: Callable[[], BinaryIO],
    *,
    size: int,
    version: str,
    file_name: str,
    content_type: str | None = None,
) -> HttpResponseBase:
    """What `opened` reads, as an attachment; or the range that was asked for: 206; 304 if the client has it; 416 if there is none such.

    `version` is its ETag. Several ranges at once, or a range of another version (If-Range), are answered with the whole.
    """
    tag = f'"{version}"'
    if tag in request.headers.get("If-None-Match", ""):
        return _tagged(HttpResponse(status=304), tag)
    asked = _range(request, size, tag)
    if asked is not None and not asked:
        refusal = HttpResponse(status=416, headers={"Content-Range": f"bytes */{size}"})
        return _tagged(refusal, tag)
    file = opened()
    if asked is None:
        return _tagged(_Response(file, as_attachment=True, filename=file_name, content_type=content_type), tag)
    file.seek(asked.start)
    part = _Part(file, len(asked))
    sent = _Response(part, status=206, as_attachment=True, filename=file_name, content_type=content_type)
    sent["Content-Length"] = str(len(asked))
    sent["Content-Range"] = f"bytes {asked.start}-{asked.stop - 1}/{size}"
    return _tagged(sent, tag)


def _range(request: HttpRequest, size: int, tag: str) -> range | None:
    """The bytes asked for, empty if there are none such; None where the whole file is the answer."""
    found = ONE_RANGE.fullmatch(request.headers.get("Range", "").replace(" ", ""))
    if request.method != "GET" or found is None or found[1] == found[2] == "":
        return None
    if request.headers.get("If-Range", tag) != tag:
        return None
    if not found[1]:  # the last so many
        return range(max(size - int(found[2]), 0), size)
    first, last = int(found[1]), int(found[2]) if found[2] else size - 1
    if found[2] and last < first:
        return None  # no range by the RFC's grammar: ignored
    return range(first, min(last, size - 1) + 1)


def _tagged(response: HttpResponseBase, tag: str) -> HttpResponseBase:
    response["ETag"], response["Accept-Ranges"] = tag, "bytes"
    return response


class _Response(FileResponse):
    block_size = BLOCK_BYTES


class _Part:
    """A file up to so many bytes from where it stands."""

    def __init__(self, file: BinaryIO, length: int):
        self.file = file
        self.left = length

    def read(self, size: int = -1) -> bytes:
        """As a file's."""
        wanted = self.left if size < 0 else min(size, self.left)
        data = self.file.read(wanted)
        self.left -= len(data)
        return data

    def close(self) -> None:
        """Close the file."""
        self.file.close()
