"""Files as one zip of which every byte is known before it is sent: a download may begin anywhere in it.

Entries are stored as they are. A zip that compresses has no size before it was packed, and no byte of it can be had without
packing all that comes before: resuming would need a second copy on disk, or a processor's time for what the client has already.
The cost is the line: JSON Lines travel at their full size. Their Parquet twins are compressed, and each file can be had alone.
"""

import hashlib
import io
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from datetime import datetime
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, NamedTuple

BLOCK_BYTES = 2**20


class Member(NamedTuple):
    """A file that goes in, and under which name; what it holds, by `crc32` and `sha256`, must not change."""

    path: Path
    name: str
    crc32: int
    sha256: str


def crc32_of(path: Path) -> int:
    """By which a zip tells that a file is whole. Reads all of it, a block at a time."""
    found = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            found = zlib.crc32(block, found)
    return found


class Archive(io.RawIOBase):
    """The zip as a file to read and seek in: to be anywhere costs nothing, and no more than a block is in memory.

    The same members and moment are the same bytes, and `tag` tells them apart from others. `moment` is the date of all members.
    Raises OSError when a file became shorter meanwhile.
    """

    def __init__(self, members: Sequence[Member], moment: datetime):
        super().__init__()
        self._parts: list[bytes | Path] = []
        infos: list[zipfile.ZipInfo] = []
        sizes: list[int] = []
        seen = hashlib.sha256()
        for member in members:
            info = _info(member, moment, header_offset=sum(sizes))
            header = info.FileHeader()  # sizes of 64 bits where they need them
            self._parts += [header, member.path]
            sizes += [len(header), info.file_size]
            infos.append(info)
            seen.update(header + member.sha256.encode())
        directory = _directory(infos, begins=sum(sizes))
        self._parts.append(directory)
        seen.update(directory)
        self._ends = list(accumulate([*sizes, len(directory)]))
        self.size, self.tag = self._ends[-1], seen.hexdigest()
        self._at = 0
        self._opened: tuple[Path, BinaryIO] | None = None

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Where the next read begins."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As a file's."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        return self._at

    def readinto(self, buffer) -> int:
        """As a file's: up to the end of the part it is in."""
        if self._at >= self.size:
            return 0
        number = bisect_right(self._ends, self._at)
        part, left = self._parts[number], self._ends[number] - self._at
        if isinstance(part, bytes):
            begin = len(part) - left
            data = part[begin : begin + len(buffer)]
        else:
            begin = self._at - (self._ends[number - 1] if number else 0)
            data = self._read(part, begin, min(left, len(buffer)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _read(self, path: Path, begin: int, count: int) -> bytes:
        if self._opened is None or self._opened[0] != path:
            self._shut()
            self._opened = (path, path.open("rb"))
        file = self._opened[1]
        file.seek(begin)
        data = file.read(count)
        if not data:
            raise OSError(f"{path}: ended at byte {begin:,}, before its time")
        return data

    def _shut(self) -> None:
        if self._opened is not None:
            self._opened[1].close()
            self._opened = None

    def close(self) -> None:
        """Close the file that is open."""
        self._shut()
        super().close()


def _info(member: Member, moment: datetime, header_offset: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(member.name, moment.timetuple()[:6])
    info.create_system, info.external_attr = 3, 0o100644 << 16  # Unix: a file that its owner may write and all may read
    info.file_size = info.compress_size = member.path.stat().st_size
    info.CRC, info.header_offset = member.crc32, header_offset
    return info


def _directory(infos: list[zipfile.ZipInfo], begins: int) -> bytes:
    """What stands behind all members, by the library that knows when 64 bits are needed."""
    tail = _Tail(begins)
    with zipfile.ZipFile(tail, "w") as archive:
        archive.infolist().extend(infos)
    return tail.getvalue()


class _Tail(io.BytesIO):
    """The end of a file: it begins at byte `begins`."""

    def __init__(self, begins: int):
        super().__init__()
        self.begins = begins

    def tell(self) -> int:
        return self.begins + super().tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self.begins + super().seek(offset - self.begins if whence == io.SEEK_SET else offset, whence)
