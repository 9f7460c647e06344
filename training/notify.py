"""Telling people and programs how a night ended: a signed webhook, an e-mail. Raise StageError where nobody could be told.

Webhooks follow the Standard Webhooks specification, as the web half's do: `webhook-id`, `webhook-timestamp`, and `webhook-signature`
over "id.timestamp.body" by HMAC-SHA256 with HEED_WEBHOOK_SECRET ("whsec_" and base64). A message told again has the same id.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import smtplib
import ssl
import time
from collections.abc import Sequence
from email.message import EmailMessage
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx

from training.errors import StageError

TRIES = 3
TIMEOUT_SECONDS = 20.0


def webhook(url: str, *, message_id: str, event: str, data: dict, at: str) -> None:
    """POST a signed message; three tries. Raises StageError if nobody takes it or the secret is missing or wrong."""
    body = json.dumps({"type": event, "timestamp": at, "data": data}, ensure_ascii=False).encode()
    secret = os.environ.get("HEED_WEBHOOK_SECRET", "").strip()
    problem = ""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(2.0**attempt)
        seconds = int(time.time())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "Heed",
            "webhook-id": message_id,
            "webhook-timestamp": str(seconds),
            "webhook-signature": signature(secret, message_id, seconds, body),
        }
        try:
            answer = httpx.post(url, content=body, headers=headers, timeout=TIMEOUT_SECONDS)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            problem = f"no answer ({type(error).__name__}: {error})"
            continue
        if answer.is_success:
            return
        problem = f"{answer.status_code} {answer.reason_phrase}"
    raise StageError(f"webhook {urlsplit(url).hostname}: {problem}")


def signature(secret: str, message_id: str, seconds: int, body: bytes) -> str:
    """The header webhook-signature: "v1," and the HMAC-SHA256 of "id.timestamp.body" in base64. Raises StageError for a bad secret."""
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except binascii.Error:
        key = b""
    if not key:
        raise StageError("HEED_WEBHOOK_SECRET is not set, or not base64 behind whsec_: it signs the webhook")
    digest = hmac.new(key, f"{message_id}.{seconds}.".encode() + body, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


def mail(*, to: Sequence[str], sender: str, subject: str, text: str, attachment: Path | None, message_id: str) -> None:
    """Send an e-mail by SMTP_URL (smtp://user:password@host:587, which turns to TLS where the server can; smtps:// for TLS at once).

    Raises StageError when it cannot be sent.
    """
    message = EmailMessage()
    message["Subject"], message["From"], message["To"] = subject, sender, ", ".join(to)
    message["Message-ID"] = f"<{message_id}@{sender.rpartition('@')[2].strip('> ') or 'heed'}>"
    message.set_content(text)
    if attachment and attachment.is_file():
        message.add_attachment(attachment.read_text(encoding="utf-8"), subtype="html", filename=attachment.name)
    try:
        parts = urlsplit(os.environ.get("SMTP_URL", ""))
        port = parts.port
    except ValueError as error:
        raise StageError(f"SMTP_URL: {error}") from None
    if parts.scheme not in ("smtp", "smtps") or not parts.hostname:
        raise StageError("SMTP_URL is not set, or not smtp://… or smtps://…: it says how e-mail is sent")
    try:
        with _connected(parts.scheme, parts.hostname, port) as server:
            if parts.username:
                server.login(unquote(parts.username), unquote(parts.password or ""))
            server.send_message(message)
    except (OSError, smtplib.SMTPException) as error:
        raise StageError(f"e-mail by {parts.hostname}: {error}") from None


def _connected(scheme: str, host: str, port: int | None) -> smtplib.SMTP:
    if scheme == "smtps":
        context = ssl.create_default_context()
        return smtplib.SMTP_SSL(host, port or 465, timeout=TIMEOUT_SECONDS, context=context)
    server = smtplib.SMTP(host, port or 587, timeout=TIMEOUT_SECONDS)
    server.ehlo()
    if server.has_extn("starttls"):
        server.starttls(context=ssl.create_default_context())
    return server
