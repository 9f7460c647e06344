"""Messages by e-mail."""

import logging

from django.core.mail import send_mail
from django.template.loader import render_to_string

log = logging.getLogger(__name__)


def send(template: str, subject: str, to: str, context: dict) -> bool:
    """True if the mail went out. A dead mail server must not undo what was decided: it is logged. Send outside of transactions."""
    try:
        send_mail(f"[Heed] {subject}", render_to_string(template, context), None, [to])
    except OSError:
        log.exception("E-mail to %s could not be sent", to)
        return False
    return True
