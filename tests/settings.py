"""Heed's settings for a test run: what must come from the environment, a throwaway database, cheap passwords.

Processes that tests start (commands, web servers) inherit HEED_TEST_BASE and so use the same database server and folders.
"""

import os
import tempfile
from pathlib import Path

from labeling.postgres import embedded_url

os.environ.setdefault("SECRET_KEY", "only for tests, never a secret")
os.environ.setdefault("ALLOWED_HOSTS", "testserver,127.0.0.1,localhost")
# One folder per run: two runs in one clone do not meet. Everything that tests write lies below it.
if "HEED_TEST_BASE" not in os.environ:
    os.environ["HEED_TEST_BASE"] = tempfile.mkdtemp(prefix="heed-test-")
TEST_BASE = Path(os.environ["HEED_TEST_BASE"])
TEST_BASE.chmod(0o711)  # the database server, another user when root runs the tests, must pass through
# Workers of pytest-xdist have a database each, so each needs exports of its own: both call their first one v0001.
_var = TEST_BASE / "var" / os.environ.get("PYTEST_XDIST_WORKER", "main")
os.environ["HEED_VAR"] = str(_var)
(_var / "static").mkdir(parents=True, exist_ok=True)  # whitenoise warns where there is none
IS_EMBEDDED = os.environ.get("DATABASE_URL", "").strip() in ("", embedded_url(TEST_BASE))
if IS_EMBEDDED:
    os.environ["DATABASE_URL"] = embedded_url(TEST_BASE)

from labeling.settings import *  # noqa: E402, F403
from labeling.settings import DATABASES  # noqa: E402

if IS_EMBEDDED:
    DATABASES["default"]["TEST"] = {"TEMPLATE": DATABASES["default"]["NAME"]}  # which tests/conftest.py migrates

PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # the real one is slow on purpose
# Without this, each new test client starts by reading the headers of all static files; test_demo.py asks for one as people do.
WHITENOISE_AUTOREFRESH = True
