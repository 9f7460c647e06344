"""`make demo` and `make stop`, in a copy of this clone: started, killed in every place, started again."""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from django.conf import settings

from labeling import demo, postgres
from tests.conftest import ROOT

pytestmark = pytest.mark.slow
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "var", "__pycache__", ".*_cache", "tests")


class Clone:
    """A copy of the checkout with its own var/, and the demo in it."""

    def __init__(self, folder: Path):
        shutil.copytree(ROOT, folder, ignore=LEFT_OUT)
        (folder / ".venv").symlink_to(ROOT / ".venv")
        self.folder, self.port = folder, free_ports()
        self.process: subprocess.Popen | None = None
        hidden = ("SECRET_KEY", "ALLOWED_HOSTS", "DATABASE_URL", "HEED_", "DJANGO_", "PYTEST_", "MAKE", "MFLAGS")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        self.environment |= {"PORT": str(self.port), "BASE_MODEL": "off"}

    def make(self, target: str, **options) -> subprocess.Popen:
        """`make TARGET`, without building the environment again."""
        command = ["make", "--old-file=requirements.txt", "--old-file=.venv/.installed", target]
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, text=True, **options)

    def start(self) -> float:
        """`make demo`; returns the seconds until the page answers."""
        began = time.monotonic()
        with (self.folder / "demo.log").open("w") as log:
            self.process = self.make("demo", stdout=log, stderr=log)
        while "Log in as" not in self.said:
            assert self.process.poll() is None, self.said
            assert time.monotonic() - began < 120, self.said
            time.sleep(0.1)
        assert self.get("/accounts/login/").status_code == 200
        return time.monotonic() - began

    @property
    def said(self) -> str:
        return (self.folder / "demo.log").read_text()

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=20, trust_env=False)

    def wait_until_healthy(self, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                assert self.get("/healthz").status_code == 200
                return
            except (httpx.HTTPError, AssertionError):
                assert time.monotonic() < deadline, (self.folder / "var/log/web.log").read_text()[-3000:]
                time.sleep(0.2)

    def processes(self, text: str = "") -> list[psutil.Process]:
        """What runs of this demo, the database server included; only what has `text` in its command line."""
        found = []
        for process in psutil.process_iter():
            try:
                is_marked = process.environ().get(demo.MARK) == str(self.folder)
                is_server = str(self.folder) in " ".join(process.cmdline()) and process.name() == "postgres"
                # A server's child bears its parent's command line for a moment after it was forked.
                is_child = process.name() == "postgres" and process.parent().name() == "postgres"
                if (is_marked or is_server) and text in " ".join(process.cmdline()) and not (text and is_child):
                    found.append(process)
            except (psutil.Error, AttributeError):  # ended meanwhile, it or its parent
                continue
        return found

    @property
    def front(self) -> psutil.Process:
        """The process that `make demo` is: the one that holds the lock."""
        return psutil.Process(json.loads((self.folder / "var/demo/lock").read_text())["pid"])

    def one(self, text: str) -> psutil.Process:
        """The process with this command line that no other such process started; it may just be starting again."""
        deadline = time.monotonic() + 60
        while True:
            found = self.processes(text)
            first = [process for process in found if process.parent() not in found]
            if len(first) == 1:
                return first[0]
            assert time.monotonic() < deadline, f"{text}: {first}"
            time.sleep(0.1)

    @property
    def password(self) -> str:
        return re.search(r"password of all is\s+(\S+)\)", self.said)[1]

    def manage(self, code: str) -> str:
        """What `manage.py shell` prints for `code`, in the environment that the welcome tells people to use."""
        command = f"set -a; . var/env; set +a; .venv/bin/python manage.py shell -v0 -c {shlex.quote(code)}"
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def remove(self) -> None:
        """Stop whatever runs and remove all traces."""
        self.make("stop", stdout=subprocess.DEVNULL).wait(120)
        if self.process:
            self.process.wait(30)
        shutil.rmtree(os.path.realpath(self.folder / "var/postgres"), ignore_errors=True)
        shutil.rmtree(postgres.runtime_folder(self.folder), ignore_errors=True)
        shutil.rmtree(self.folder)


class Labeler(threading.Thread):
    """Someone at work in a browser whose page tries again until the server answers, as ours does."""

    def __init__(self, clone: Clone, email: str):
        super().__init__(daemon=True)
        self.clone, self.email = clone, email
        self.browser = httpx.Client(base_url=f"http://127.0.0.1:{clone.port}", timeout=20, trust_env=False)
        self.is_done = threading.Event()
        self.submitted: dict[str, str] = {}  # task → the text whose submit was acknowledged
        self.failures = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.log_in()
            while not self.is_done.is_set() and self.do_one_task():
                pass
        except BaseException as error:
            self.error = error

    def ask(self, method: str, path: str, **fields) -> httpx.Response:
        """The server's answer, however often it must be asked."""
        deadline = time.monotonic() + 120
        while True:
            try:
                data = fields | {"csrfmiddlewaretoken": self.browser.cookies.get("csrftoken", "")} if fields else None
                answer = self.browser.request(method, path, data=data)
                if answer.status_code < 500:
                    return answer
            except httpx.TransportError:
                pass
            self.failures += 1
            assert time.monotonic() < deadline, f"{method} {path}: no answer for two minutes"
            time.sleep(0.2)

    def log_in(self) -> None:
        self.ask("GET", "/accounts/login/")
        answer = self.ask("POST", "/accounts/login/", login=self.email, password=self.clone.password)
        assert answer.status_code == 302, answer.text

    def do_one_task(self) -> bool:
        """Claim, save what is typed a few times, submit. False when nothing is left."""
        page = self.ask("POST", "/tasks/next", kind="demonstration").headers["location"]
        if page == "/tasks/":
            return False
        page = page.partition("?")[0]  # behind it: what was chosen, for the next one
        key = re.search(r'name="submit_key"\s+value="([^"]+)"', self.ask("GET", page).text)[1]
        text = ""
        for version in range(1, 4):
            text += f"{self.email} types part {version} of {page}. "
            fields = {"text": text, "version": str(version), "base": str(version - 1), "editor": "test"}
            saved = self.ask("POST", f"{page}draft", **fields, active_seconds="1")
            assert saved.status_code == 200, saved.text
            time.sleep(0.3)  # types
        answer = self.ask("POST", f"{page}submit", **fields, submit_key=key)
        assert answer.status_code == 302, answer.text
        self.submitted[page.split("/")[-2]] = text
        return True


def free_ports() -> int:
    """A port whose two successors are free too (the policy server's, the gateway's)."""
    while True:
        with socket.socket() as first, socket.socket() as second, socket.socket() as third:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
                third.bind(("127.0.0.1", port + 2))
                return port
            except OSError:
                continue


@pytest.fixture(scope="module")
def copied_clone() -> Iterator[Clone]:
    made = Clone(settings.TEST_BASE / f"demo {os.getpid()}")  # with a space
    yield made
    made.remove()


@pytest.fixture
def clone(copied_clone) -> Clone:
    """A clone whose demo runs. Tests share it, and may leave it stopped."""
    if copied_clone.process is None or copied_clone.process.poll() is not None:
        copied_clone.start()
    return copied_clone


def test_start_says_where_to_go_and_who_may_log_in(clone):
    assert f"http://127.0.0.1:{clone.port}" in clone.said
    password = clone.password
    assert (clone.folder / "var/env").stat().st_mode & 0o077 == 0
    assert clone.get("/static/css/heed.css").headers["content-type"].startswith("text/css"), "as it is served to people"
    for person in ("admin", "researcher", "reviewer", "labeler", "heldout", "applicant"):
        assert f"{person}@demo.example" in clone.said
        with httpx.Client(base_url=f"http://127.0.0.1:{clone.port}", timeout=20, trust_env=False) as browser:
            page = browser.get("/accounts/login/")
            token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page.text)[1]
            form = {"login": f"{person}@demo.example", "password": password, "csrfmiddlewaretoken": token}
            answer = browser.post("/accounts/login/", data=form, headers={"Referer": str(page.url)})
            assert answer.status_code == 302, f"{person}: {answer.text}"
            assert browser.cookies.get("sessionid")


def test_the_gateway_answers_beside_the_web(clone):
    url = f"http://127.0.0.1:{clone.port + 2}"
    assert f"{url}/v1" in clone.said
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(httpx.TransportError):
            health = httpx.get(f"{url}/healthz", timeout=20, trust_env=False)
            break
        assert time.monotonic() < deadline, (clone.folder / "var/log/gateway.log").read_text()[-3000:]
        time.sleep(0.2)
    assert health.json()["ok"]
    assert httpx.get(f"{url}/v1/models", timeout=20, trust_env=False).json()["error"]["code"] == "invalid_api_key"


def test_a_second_demo_of_the_clone_is_refused(clone):
    second = clone.make("demo", stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said, _ = second.communicate(timeout=60)
    assert second.returncode != 0
    assert "is running already" in said
    assert clone.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    "victim",
    ["gunicorn", "procrastinate worker", "manage.py postgres", "/bin/postgres", "training serve", "labeling.gateway"],
)
def test_what_is_killed_is_started_again(clone, victim):
    made = clone.manage(
        "from labeling.models import User; print(User.objects.create_user(f'{__import__(\"uuid\").uuid4()}@x.y').pk)"
    )
    killed = clone.one(victim)
    killed.kill()
    deadline = time.monotonic() + 60
    while not [process for process in clone.processes(victim) if process.pid != killed.pid]:
        assert time.monotonic() < deadline, f"{victim} was not started again"
        time.sleep(0.1)
    clone.wait_until_healthy()
    assert clone.manage(f"from labeling.models import User; print(User.objects.filter(pk={made}).count())") == "1"
    assert len(clone.processes("/bin/postgres")) == 1


def test_nothing_is_lost_or_doubled_while_people_work(clone):
    """Web, worker, database, its owner and in the end the whole demo are killed under two labelers who go on working."""
    labelers = [Labeler(clone, f"{name}@demo.example") for name in ("labeler", "heldout")]
    for labeler in labelers:
        labeler.start()
    for victim in ("gunicorn", "/bin/postgres", "procrastinate worker", "manage.py postgres", "gunicorn"):
        time.sleep(1.5)
        clone.one(victim).kill()
        clone.wait_until_healthy()
    clone.one("supervisord").kill()
    assert clone.process.wait(120) != 0
    assert "run `make demo` again" in clone.said
    assert clone.processes() == []
    clone.start()
    time.sleep(2)
    for labeler in labelers:
        labeler.is_done.set()
    for labeler in labelers:
        labeler.join(120)
        assert labeler.error is None, labeler.error
        assert labeler.submitted
    assert sum(labeler.failures for labeler in labelers) > 0, "nobody noticed the kills: they proved nothing"
    code = (
        "import json; from labeling.models import Revision, Slot; "
        "rows = Revision.objects.values_list('submission__task__uuid', 'submission__labeler__email', 'number', 'text'); "
        "seats = Slot.objects.filter(status='submitted').count(); "
        "print(json.dumps([[str(v) for v in row] for row in rows] + [seats]))"
    )
    *rows, seats = json.loads(clone.manage(code))
    expected = [[task, lab.email, "1", text] for lab in labelers for task, text in lab.submitted.items()]
    assert sorted(rows) == sorted(expected)
    assert seats == len(expected)


def test_comes_up_again_when_make_demo_is_killed(clone):
    before = clone.processes()
    clone.front.kill()
    assert clone.process.wait(120) != 0
    clone.start()  # at once, while the old processes may still be ending
    assert [process for process in before if process.is_running() and process.status() != psutil.STATUS_ZOMBIE] == []
    assert len(clone.processes("/bin/postgres")) == 1


def test_stop_ends_everything_and_a_second_start_is_quick(clone):
    password = (clone.folder / "var/env").read_text()
    assert clone.make("stop").wait(120) == 0
    assert clone.process.wait(10) == 0
    assert clone.processes() == []
    with pytest.raises(httpx.ConnectError):
        clone.get("/healthz")
    patience_seconds = 20 * max(1.0, os.getloadavg()[0] / os.cpu_count())  # 20 where nothing else runs
    assert clone.start() < patience_seconds
    assert (clone.folder / "var/env").read_text() == password
    clone.front.send_signal(signal.SIGINT)  # Ctrl-C
    clone.process.wait(60)
    assert clone.processes() == []
    stop = clone.make("stop", stdout=subprocess.PIPE)
    assert "No demo of this clone is running." in stop.communicate(timeout=60)[0]


def test_a_taken_port_is_named(copied_clone):
    clone = copied_clone
    assert clone.make("stop").wait(120) == 0
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", clone.port))
        taken.listen()
        refused = clone.make("demo", stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        said, _ = refused.communicate(timeout=60)
    assert refused.returncode != 0
    assert f"port {clone.port} is taken" in said
    assert "make demo PORT=" in said
