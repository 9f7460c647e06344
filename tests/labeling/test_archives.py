"""Zips of stored files: read from anywhere, and by others' programs."""

import random
import shutil
import subprocess
import zipfile
from datetime import UTC, datetime

import pytest

from labeling.archives import Archive, Member, crc32_of

MOMENT = datetime(2026, 1, 31, 12, 30, 8, tzinfo=UTC)


def members(folder, **sizes: int) -> list[Member]:
    """Files of such sizes, their content made by chance."""
    for name, size in sizes.items():
        (folder / name).write_bytes(random.Random(name).randbytes(size))
    return [Member(folder / name, f"v1/{name}", crc32_of(folder / name), name) for name in sizes]


def test_any_stretch_is_the_one_that_the_whole_has(tmp_path):
    made = members(tmp_path, a=1000, empty=0, é=1, b=300)
    whole = Archive(made, MOMENT).read()
    assert Archive(made, MOMENT).size == len(whole) and Archive(made, MOMENT).tag == Archive(made, MOMENT).tag
    archive, chance = Archive(made, MOMENT), random.Random(0)
    for _ in range(300):
        begin, count = chance.randrange(len(whole) + 5), chance.randrange(1, 700)
        archive.seek(begin)
        got = b""
        while len(got) < count and (data := archive.read(count - len(got))):
            got += data
        assert got == whole[begin : begin + count]
    assert Archive(made[:3], MOMENT).tag != archive.tag
    other = [made[0]._replace(sha256="another's"), *made[1:]]
    assert Archive(other, MOMENT).tag != archive.tag


def test_others_read_it(tmp_path):
    made = members(tmp_path, a=1000, empty=0, é=1)
    (tmp_path / "x.zip").write_bytes(Archive(made, MOMENT).read())
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        assert archive.testzip() is None and archive.read("v1/a") == (tmp_path / "a").read_bytes()
        assert [info.date_time for info in archive.infolist()] == [(2026, 1, 31, 12, 30, 8)] * 3
    if unzip := shutil.which("unzip"):
        assert "No errors detected" in subprocess.check_output([unzip, "-t", tmp_path / "x.zip"], text=True)


def test_files_and_places_beyond_four_gibibytes(tmp_path):
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(5 * 2**30)  # a hole: takes no room
    huge = Member(tmp_path / "huge", "v1/huge", 0, "")
    small = members(tmp_path, small=9)
    archive = Archive([huge, *small], MOMENT)
    assert archive.size > 5 * 2**30
    with zipfile.ZipFile(archive) as read:
        first, second = read.infolist()
        assert first.file_size == 5 * 2**30 < second.header_offset
        assert read.read("v1/small") == (tmp_path / "small").read_bytes()
        with read.open("v1/huge") as file:
            assert file.read(100) == bytes(100)


def test_a_file_that_became_shorter_is_no_shorter_download(tmp_path):
    archive = Archive(members(tmp_path, a=1000, b=10), MOMENT)
    (tmp_path / "a").write_bytes(b"no")
    archive.seek(500)
    with pytest.raises(OSError, match="ended at byte"):
        archive.read(10)
