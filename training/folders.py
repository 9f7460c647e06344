"""Files and folders that are there whole, or not at all."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

HALF_BUILT = ".building-"
"""How the name of a folder begins that is still being written."""


def hash_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, in hex, read in pieces."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file so that a crash leaves either the old one or the new one, whole."""
    path = Path(path)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o644)  # mkstemp's 0600 would shut out other users of a shared folder
            file.write(data)
            _sync(file)
        Path(temporary).replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise
    sync_folder(path.parent)


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder to fill, renamed to `path` when the block ends well and removed when it does not.

    A crash in between leaves only a `.building-…` folder beside `path` (see `remove_half_built`). Raises
    FileExistsError if `path` exists: a published folder is never replaced.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists; a published folder never changes")
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{HALF_BUILT}{path.name}-", dir=path.parent))
    folder.chmod(0o755)
    try:
        yield folder
        for file in folder.rglob("*"):
            if file.is_file():
                with file.open("rb") as opened:
                    _sync(opened)
        folder.rename(path)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    sync_folder(path.parent)


def remove_half_built(root: str | os.PathLike[str]) -> list[str]:
    """Remove what killed writers left under `root`. Only for who knows that none is writing there now (hold a lock)."""
    root = Path(root)
    leftovers = sorted(root.glob(f"{HALF_BUILT}*")) if root.is_dir() else []
    for folder in leftovers:
        shutil.rmtree(folder, ignore_errors=True)
    return [folder.name for folder in leftovers]


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the renames in a folder last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
