"""Files and folders that are there whole, or not at all."""

import errno
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from training.errors import StageError

HALF_BUILT = ".building-"
"""How the name of a folder begins that is still being written."""
REPLACED = ".replaced-"
"""How the name of a folder begins that gives way to the next of its name."""

TAKEN = (errno.ENOTEMPTY, errno.EEXIST)  # why a folder cannot be renamed to one that is there


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
def atomic_folder(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder to fill, renamed to `path` when the block ends well and removed when it does not. Whoever the umask lets read
    a new file may read all of its files.

    A crash in between leaves only a `.building-…` folder beside `path` (see `remove_half_built`). Raises
    FileExistsError if `path` exists: a published folder is never replaced. With `overwrite` it gives way, once the new one is whole;
    a crash at that very moment leaves it beside `path` as `.replaced-…` (see `settle_replaced`).
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; a published folder never changes")
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{HALF_BUILT}{path.name}-", dir=path.parent))
    folder.chmod(0o755)
    replaced = folder.with_name(folder.name.replace(HALF_BUILT, REPLACED, 1))
    try:
        yield folder
        mode = _mode_of_new_files(folder)
        for file in folder.rglob("*"):
            if file.is_file():
                if file.stat().st_nlink == 1:  # else it is another folder's too
                    file.chmod(file.stat().st_mode | mode)  # safetensors gives 0600, whatever the umask
                with file.open("rb") as opened:
                    _sync(opened)
        _take_place(folder, path, replaced if overwrite else None)
    except BaseException:
        if replaced.exists() and not path.exists():
            replaced.rename(path)
        shutil.rmtree(folder, ignore_errors=True)
        raise
    sync_folder(path.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _mode_of_new_files(folder: Path) -> int:
    """What the umask leaves to a file that is made in a folder; asking for the umask itself would set it, for every thread."""
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    return mode & 0o777


def _take_place(folder: Path, path: Path, replaced: Path | None) -> None:
    """Rename `folder` to `path`; what is there becomes `replaced`, again if another process puts it back in between."""
    while True:
        if replaced is not None and path.exists():
            path.rename(replaced)
        try:
            folder.rename(path)
            return
        except OSError as error:
            if replaced is None or error.errno not in TAKEN or replaced.exists():
                raise


def settle_replaced(path: str | os.PathLike[str]) -> None:
    """What a writer that was killed while a folder gave way left of it: put back where `path` is missing, removed where it is whole.

    Safe while another process publishes there.
    """
    path = Path(path)
    with suppress(FileNotFoundError):  # that other process was faster
        # Listed before the look at path: a path that is there afterwards is not the one that gave way.
        left = sorted(_leftovers(path.parent, REPLACED, path.name), key=lambda folder: folder.stat().st_ctime)
        if left and not path.exists():
            try:
                left.pop().rename(path)
            except OSError as error:
                if error.errno not in TAKEN:
                    raise
            sync_folder(path.parent)
        for folder in left if (path / "manifest.json").is_file() else ():
            shutil.rmtree(folder, ignore_errors=True)


def remove_half_built(root: str | os.PathLike[str], name: str | None = None) -> list[str]:
    """Remove what killed writers, or those of `name` alone, left under `root`. Only for who knows that none is writing there now
    (hold a lock)."""
    root = Path(root)
    leftovers = _leftovers(root, HALF_BUILT, name)
    for folder in leftovers:
        shutil.rmtree(folder, ignore_errors=True)
    return [folder.name for folder in leftovers]


def _leftovers(root: Path, kind: str, name: str | None) -> list[Path]:
    """Temporary folders under `root`, of one name or all; "sft" is not the "sft-2" that begins like it."""
    if not root.is_dir():
        return []
    mkdtemps = re.compile(re.escape(f"{kind}{name}-") + "[a-z0-9_]{8}")
    return sorted(path for path in root.glob(f"{kind}*") if name is None or mkdtemps.fullmatch(path.name))


def hold(folder: Path) -> BinaryIO:
    """Hold a run's folder, made if need be, until what is returned is closed, or the process ends, however it ends.

    Raises StageError when another process holds it.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        lock = folder / "lock"
        try:
            file = lock.open("wb")
        except FileNotFoundError:  # the run that held it ended in between, and took its folder away
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                return file
        except BlockingIOError:
            file.close()
            raise StageError(f"{folder}: another process is working on this run") from None
        except FileNotFoundError:
            pass
        file.close()


def settle(file: BinaryIO) -> None:
    """Put what was written to it so far on disk, and give back the memory that held it, so that gigabytes written once do not push out
    what is read all the time."""
    _sync(file)
    if hasattr(os, "posix_fadvise"):  # not on macOS
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


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
