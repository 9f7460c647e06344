"""Settings, from the environment. Production is the default; what is missing fails loudly.

SECRET_KEY        required   any long random string
ALLOWED_HOSTS     required   comma-separated host names
DATABASE_URL      optional   postgresql://… (15 or later); unset: the embedded PostgreSQL of `manage.py postgres`
PREPARED_STATEMENTS optional 0 behind a pooler that gives every transaction another connection; default 1
DEBUG             optional   1 for development; default 0
HTTPS             optional   1: cookies travel over TLS only, plain HTTP is redirected; default 1 unless every host is this machine
EMAIL_URL         optional   smtp://user:password@host:port (smtps:// for TLS); unset: one file per message in var/mail
EMAIL_FROM        optional   sender of Heed's messages
SIGN_UP           optional   application (anyone may apply, the default), invitation, closed
MFA               optional   off (default), optional, required (for reviewers, researchers and admins)
OIDC_ISSUER, OIDC_CLIENT_ID, OIDC_CLIENT_SECRET, OIDC_NAME   optional   a "sign in with …" button
LEASE_MINUTES     optional   how long a seat is kept for a labeler who shows no sign of work; default 30
LANGUAGES         optional   codes that people may choose from, as en,he; default en
TIME_ZONE         optional   default UTC
GATEWAY_URL       optional   where the web half finds the gateway; default http://127.0.0.1:GATEWAY_PORT (8002)
GATEWAY_PUBLIC_URL optional  where API clients find it, as shown beside their keys; default GATEWAY_URL
POLICY_URL        optional   where the gateway finds the policy server; default http://127.0.0.1:POLICY_PORT (8001)
POLICY_MODEL, POLICY_API_KEY optional   what that server wants to hear as `model` (default nothing; {name}: the serving policy) and its key
POLICY_CONNECT_SECONDS, POLICY_FIRST_SECONDS, POLICY_GAP_SECONDS   optional   how long it may take to connect (5), to the first piece
                             of an answer (60) and between pieces (30); POLICY_RESTART_SECONDS: how long a restart is waited for (30)
PROMPTS_PER_AUTHOR, PROMPTS_PER_ORGANIZATION optional   how many prompts of one are let in unasked (labelers as authors: any number);
                             default 200 each, as InstructGPT §3.2 and A.2; 0: no limit
WEBHOOK_PRIVATE   optional   1: webhooks may go to this machine and to private networks, and over plain HTTP; default 0
NIGHTLY_CONFIG    optional   settings file of the nightly command: the worker starts it by NIGHTLY_CRON (default "30 1 * * *", UTC) on this
                             machine, with HEED_URL and HEED_TOKEN from its own environment; unset: it does not
CAPTURE_MAX_CHARS optional   longer prompts of the gateway and the playground are not kept; default 4000 (about 1k tokens)
"""

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

import dj_database_url
from croniter import croniter
from csp.constants import NONE, SELF
from django.conf.locale import LANG_INFO
from django.core.exceptions import ImproperlyConfigured

BASE_DIR = Path(__file__).resolve().parent.parent
VAR_DIR = Path(os.environ.get("HEED_VAR") or BASE_DIR / "var")


def required(name: str, hint: str) -> str:
    """The value of an environment variable that has no safe default."""
    value = os.environ.get(name, "").strip()
    if not value:
        raise ImproperlyConfigured(f"Set {name} in the environment ({hint}). `make` sets it for its own commands.")
    return value


def switch(name: str, default: bool) -> bool:
    """An on/off environment variable: 1, true, yes, on or 0, false, no, off."""
    value = os.environ.get(name, "").strip().lower()
    if value in {"1", "true", "yes", "on"}:
        return True
    if value in {"0", "false", "no", "off"}:
        return False
    if value:
        raise ImproperlyConfigured(f"{name}={value}: expected 1 or 0.")
    return default


def choice(name: str, options: tuple[str, ...]) -> str:
    """An environment variable with a fixed set of values; the first is the default."""
    value = os.environ.get(name, "").strip() or options[0]
    if value not in options:
        raise ImproperlyConfigured(f"{name}={value}: expected one of {', '.join(options)}.")
    return value


def database_url() -> str:
    """DATABASE_URL, else the embedded PostgreSQL of this checkout (whose wheel is then needed)."""
    if url := os.environ.get("DATABASE_URL", "").strip():
        return url
    from labeling.postgres import embedded_url

    return embedded_url(BASE_DIR)


DEBUG = switch("DEBUG", False)
SECRET_KEY = required("SECRET_KEY", "a long random string, the same for every process")
ALLOWED_HOSTS = [h.strip() for h in required("ALLOWED_HOSTS", "comma-separated host names").split(",") if h.strip()]
HTTPS = switch("HTTPS", not DEBUG and not set(ALLOWED_HOSTS) <= {"127.0.0.1", "localhost", "[::1]", "testserver"})

INSTALLED_APPS = [
    "labeling.apps.LabelingConfig",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "allauth",
    "allauth.account",
    "allauth.mfa",
    "allauth.socialaccount",
    "allauth.socialaccount.providers.openid_connect",
    "csp",
    "django_htmx",
    "template_partials",
    "procrastinate.contrib.django",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "labeling.middleware.ContentSecurity",
    "labeling.middleware.StaticFiles",
    "labeling.middleware.Sessions",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "labeling.middleware.LongForms",
    "django.middleware.csrf.CsrfViewMiddleware",
    "labeling.middleware.Authentication",
    "labeling.middleware.LoginRequired",
    "labeling.middleware.Messages",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "allauth.account.middleware.AccountMiddleware",
    "labeling.middleware.Htmx",
    "labeling.middleware.RequireSecondFactor",
    "labeling.middleware.DomainErrors",
]

ROOT_URLCONF = "labeling.urls"
WSGI_APPLICATION = "labeling.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    }
]

DATABASES = {
    "default": dj_database_url.parse(database_url(), conn_max_age=60, conn_health_checks=True),
}
if "postgresql" not in DATABASES["default"]["ENGINE"]:
    raise ImproperlyConfigured("DATABASE_URL must name a PostgreSQL database (postgresql://…), version 15 or later.")
PREPARED_STATEMENTS = switch("PREPARED_STATEMENTS", True)
CACHES = {"default": {"BACKEND": "django.core.cache.backends.db.DatabaseCache", "LOCATION": "heed_cache"}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# Accounts -----------------------------------------------------------------------------------------------------
AUTH_USER_MODEL = "labeling.User"
AUTHENTICATION_BACKENDS = ["allauth.account.auth_backends.AuthenticationBackend"]
PASSWORD_HASHERS = [
    "django.contrib.auth.hashers.Argon2PasswordHasher",
    "django.contrib.auth.hashers.PBKDF2PasswordHasher",
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]
LOGIN_URL = "account_login"
LOGIN_REDIRECT_URL = "home"
SIGN_UP = choice("SIGN_UP", ("application", "invitation", "closed"))
MFA = choice("MFA", ("off", "optional", "required"))
SILENCED_SYSTEM_CHECKS = ["auth.W004"]  # e-mail is unique whatever its case, by a constraint
ACCOUNT_ADAPTER = "labeling.accounts.AccountAdapter"
SOCIALACCOUNT_ADAPTER = "labeling.accounts.SocialAccountAdapter"
ACCOUNT_USER_MODEL_USERNAME_FIELD = None
ACCOUNT_LOGIN_METHODS = {"email"}
ACCOUNT_SIGNUP_FIELDS = ["email*", "password1*", "password2*"]
ACCOUNT_SIGNUP_FORM_CLASS = "labeling.forms.SignUpForm"
ACCOUNT_EMAIL_VERIFICATION = "optional"
ACCOUNT_EMAIL_SUBJECT_PREFIX = "[Heed] "
ACCOUNT_LOGOUT_ON_GET = False
ACCOUNT_SESSION_REMEMBER = True
MFA_SUPPORTED_TYPES = [] if MFA == "off" else ["totp", "recovery_codes"]
SOCIALACCOUNT_PROVIDERS = {}
if os.environ.get("OIDC_ISSUER"):
    SOCIALACCOUNT_PROVIDERS["openid_connect"] = {
        "OAUTH_PKCE_ENABLED": True,
        "APPS": [
            {
                "provider_id": "oidc",
                "name": os.environ.get("OIDC_NAME", "single sign-on"),
                "client_id": required("OIDC_CLIENT_ID", "OIDC_ISSUER is set"),
                "secret": required("OIDC_CLIENT_SECRET", "OIDC_ISSUER is set"),
                "settings": {"server_url": os.environ["OIDC_ISSUER"]},
            }
        ],
    }

# E-mail -------------------------------------------------------------------------------------------------------
DEFAULT_FROM_EMAIL = SERVER_EMAIL = os.environ.get("EMAIL_FROM", f"heed@{ALLOWED_HOSTS[0].lstrip('.*') or 'localhost'}")
if os.environ.get("EMAIL_URL"):
    _email = urlsplit(os.environ["EMAIL_URL"])
    if _email.scheme not in {"smtp", "smtps"} or not _email.hostname:
        raise ImproperlyConfigured("EMAIL_URL: expected smtp://user:password@host:port or smtps://…")
    EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    EMAIL_HOST, EMAIL_PORT = _email.hostname, _email.port or (465 if _email.scheme == "smtps" else 587)
    EMAIL_HOST_USER, EMAIL_HOST_PASSWORD = unquote(_email.username or ""), unquote(_email.password or "")
    EMAIL_USE_SSL, EMAIL_USE_TLS = _email.scheme == "smtps", _email.scheme == "smtp" and bool(_email.username)
else:
    EMAIL_BACKEND = "django.core.mail.backends.filebased.EmailBackend"
    EMAIL_FILE_PATH = str(VAR_DIR / "mail")

# Web ----------------------------------------------------------------------------------------------------------
CSRF_COOKIE_SECURE = SESSION_COOKIE_SECURE = SECURE_SSL_REDIRECT = HTTPS
SECURE_HSTS_SECONDS = 31_536_000 if HTTPS else 0
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if HTTPS else None
SECURE_REFERRER_POLICY = "same-origin"
SECURE_REDIRECT_EXEMPT = [r"^healthz$"]
X_FRAME_OPTIONS = "DENY"
SESSION_COOKIE_AGE = 14 * 24 * 3600
CSRF_FAILURE_VIEW = "labeling.views.home.csrf_failure"
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [SELF],
        "img-src": [SELF, "data:"],
        "object-src": [NONE],
        "base-uri": [SELF],
        "form-action": [SELF],
        "frame-ancestors": [NONE],
    }
}
if os.environ.get("OIDC_ISSUER"):
    # Browsers apply form-action to redirects too: the sign-in button posts here and is sent on to the issuer.
    _issuer = urlsplit(os.environ["OIDC_ISSUER"])
    CONTENT_SECURITY_POLICY["DIRECTIVES"]["form-action"].append(f"{_issuer.scheme}://{_issuer.netloc}")
STATIC_URL = "static/"
STATIC_ROOT = VAR_DIR / "static"
STATICFILES_DIRS = [BASE_DIR / "static"]
WHITENOISE_USE_FINDERS = True
DATA_UPLOAD_MAX_MEMORY_SIZE = 10 * 2**20  # the longest page form: 12 responses' ratings and a demonstration
FILE_UPLOAD_HANDLERS = ["django.core.files.uploadhandler.TemporaryFileUploadHandler"]  # imports stream from disk
DATA_UPLOAD_MAX_NUMBER_FIELDS = 5000

LANGUAGE_CODE = "en"
# Codes that Django knows, with catalogues of ours in labeling/locale/; strings without one are shown in English.
LANGUAGES = [
    (code, LANG_INFO[code]["name_local"])
    for code in map(str.strip, os.environ.get("LANGUAGES", LANGUAGE_CODE).split(","))
    if code in LANG_INFO
]
LOCALE_PATHS = [BASE_DIR / "labeling" / "locale"]
USE_I18N = True
USE_TZ = True
TIME_ZONE = os.environ.get("TIME_ZONE", "UTC")

# Heed's own ---------------------------------------------------------------------------------------------------
LEASE_MINUTES = int(os.environ.get("LEASE_MINUTES", "30"))
EXPORT_DIR = VAR_DIR / "exports"
PROMPT_MAX_CHARS = 200_000
RESPONSE_MAX_CHARS = 200_000
GATEWAY_URL = os.environ.get("GATEWAY_URL") or f"http://127.0.0.1:{os.environ.get('GATEWAY_PORT') or 8002}"
GATEWAY_PUBLIC_URL = os.environ.get("GATEWAY_PUBLIC_URL") or GATEWAY_URL
POLICY_URL = os.environ.get("POLICY_URL") or f"http://127.0.0.1:{os.environ.get('POLICY_PORT') or 8001}"
POLICY_MODEL = os.environ.get("POLICY_MODEL", "")
POLICY_API_KEY = os.environ.get("POLICY_API_KEY", "")
POLICY_CONNECT_SECONDS = float(os.environ.get("POLICY_CONNECT_SECONDS", "5"))
POLICY_FIRST_SECONDS = float(os.environ.get("POLICY_FIRST_SECONDS", "60"))
POLICY_GAP_SECONDS = float(os.environ.get("POLICY_GAP_SECONDS", "30"))
POLICY_RESTART_SECONDS = float(os.environ.get("POLICY_RESTART_SECONDS", "30"))
PLAYGROUND_REQUESTS_PER_MINUTE, PLAYGROUND_TOKENS_PER_MINUTE = 20, 20_000  # of each person
PROMPTS_PER_AUTHOR = int(os.environ.get("PROMPTS_PER_AUTHOR", "200"))
PROMPTS_PER_ORGANIZATION = int(os.environ.get("PROMPTS_PER_ORGANIZATION", "200"))
CAPTURE_MAX_CHARS = int(os.environ.get("CAPTURE_MAX_CHARS", "4000"))
WEBHOOK_PRIVATE = switch("WEBHOOK_PRIVATE", False)
NIGHTLY_CONFIG = os.environ.get("NIGHTLY_CONFIG", "").strip()
NIGHTLY_CRON = os.environ.get("NIGHTLY_CRON", "").strip() or "30 1 * * *"
try:  # as procrastinate will, but not until a worker runs
    croniter(NIGHTLY_CRON).get_next()
except ValueError as error:
    raise ImproperlyConfigured(
        f"NIGHTLY_CRON={NIGHTLY_CRON}: expected minute, hour, day, month, weekday, e.g. 30 1 * * * ({error})."
    ) from error
IMPORT_MAX_BYTES = int(os.environ.get("IMPORT_MAX_MB", "1024")) * 2**20

PROCRASTINATE_AUTODISCOVER_MODULE_NAME = "jobs"
PROCRASTINATE_IMPORT_PATHS = ["labeling.jobs"]

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["labeling.api.authentication.TokenAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "labeling.api.errors.problem",
    "TEST_REQUEST_DEFAULT_FORMAT": "json",
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Heed",
    "DESCRIPTION": "Human feedback for language models: prompts, labels, exports, models.",
    "VERSION": "1",
    "SERVE_INCLUDE_SCHEMA": False,
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "REDOC_DIST": "SIDECAR",
    "ENFORCE_NON_BLANK_FIELDS": True,
    "ENUM_NAME_OVERRIDES": {
        "PromptKind": "labeling.models.prompts.Prompt.Kind",
        "TaskKind": "labeling.models.tasks.Kind",
        "ModelStatus": "labeling.models.model_versions.ModelVersion.Status",
        "BatchStatus": "labeling.models.batches.Batch.Status",
        "SubmissionStatus": "labeling.models.submissions.Submission.Status",
        "Origin": "labeling.models.submissions.Origin",
        "ResponseOrigin": "labeling.models.responses.Response.Origin",
        "Group": "labeling.models.people.Group",
        "Role": "labeling.models.people.Role",
        "WebhookEvent": "labeling.models.webhooks.Event",
        "DeliveryStatus": "labeling.models.webhooks.WebhookDelivery.Status",
        "ImportKind": "labeling.models.imports.Import.Kind",
    },
}

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
    "filters": {"brief": {"()": "labeling.logs.Brief"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "filters": ["brief"]}},
    "root": {"handlers": ["stderr"], "level": "INFO"},
    # What they say at every start of every command is of no use to anyone.
    "loggers": {name: {"level": "WARNING"} for name in ("procrastinate.blueprints", "procrastinate.periodic", "httpx")},
}
