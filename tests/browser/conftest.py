"""A real chromium before the real pages: Debian's, driven by playwright, on pytest-django's live server."""

import os
import shutil
import time

import pytest
from django.conf import settings
from django.db import connection
from django.test import Client
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests import builders

# Playwright keeps an event loop in this thread, where Django would refuse its ORM; the tests' own queries are synchronous.
os.environ.setdefault("DJANGO_ALLOW_ASYNC_UNSAFE", "1")

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    # Playwright's own list, which ours replaces (the last flag counts), and three of chromium's: its address bar's popup is a
    # page of its own, made anew for each of our browsers at twice the cost of the browser itself.
    "--disable-features=AvoidUnnecessaryBeforeUnloadCheckSync,DestroyProfileOnBrowserClose,HttpsUpgrades,"
    "HttpsFirstBalancedModeAutoEnable,LensOverlay,MediaRouter,PaintHolding,ThirdPartyStoragePartitioning,"
    "AvoidCorsURLLoaderRestartOnRedirect,OptimizationHints,NetworkTimeServiceQuerying,AimEnabled,PreconnectToSearch,"
    "WebUIOmniboxPopup,WebUIOmniboxAimPopup,PreloadTopChromeWebUI",
]
TIMEOUT_MS = 30_000  # two busy cores
expect.set_options(timeout=TIMEOUT_MS)
# What these tests provoke on purpose; anything else on the console fails the test.
EXPECTED = ("status of 409", "status of 422", "status of 403", "status of 404", "ERR_INTERNET_DISCONNECTED")


@pytest.fixture(scope="session")
def chromium():
    """One browser process for all tests of this worker."""
    if not CHROMIUM and not os.environ.get("CI"):
        pytest.skip("chromium is not installed (apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def open_browser(chromium: Browser, live_server, transactional_db):
    """A factory: open_browser(person, width=…, color_scheme=…) is a browser of their own, logged in. Closed after the test.

    Errors on the console (a blocked script, an exception) fail the test.
    """
    builders.label_schema()
    contexts, errors = [], []

    def note(message) -> None:
        if message.type == "error" and not any(expected in message.text for expected in EXPECTED):
            errors.append(message.text)

    def watch(page: Page) -> None:
        page.on("console", note)
        page.on("pageerror", lambda error: errors.append(str(error)))

    def make(person=None, width: int = 1280, height: int = 900, **options) -> BrowserContext:
        viewport = {"width": width, "height": height}
        context = chromium.new_context(base_url=live_server.url, viewport=viewport, **options)
        context.set_default_timeout(TIMEOUT_MS)
        context.on("page", watch)
        contexts.append(context)
        if person is not None:
            log_in(context, person, live_server.url)
        return context

    yield make
    for context in contexts:
        context.close()
    settle()
    assert not errors, errors


def settle(seconds: float = 10) -> None:
    """Wait until the server has done what closing pages sent it last: the flush after the test would lock against it."""
    deadline = time.monotonic() + seconds
    quiet = 0
    while quiet < 3 and time.monotonic() < deadline:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle'"
            )
            quiet = quiet + 1 if cursor.fetchone()[0] == 0 else 0
        time.sleep(0.05)


def log_in(context: BrowserContext, person, url: str) -> None:
    """Give the browser the person's session."""
    client = Client()
    client.force_login(person)
    cookie = client.cookies[settings.SESSION_COOKIE_NAME].value
    context.add_cookies([{"name": settings.SESSION_COOKIE_NAME, "value": cookie, "url": url}])


@pytest.fixture
def open_page(open_browser):
    """A factory: a page in a browser of their own."""

    def make(person=None, path: str | None = None, **options) -> Page:
        page = open_browser(person, **options).new_page()
        if path:
            page.goto(path)
        return page

    return make
