"""What the log leaves out."""

import logging

from django.core.exceptions import PermissionDenied


class Brief(logging.Filter):
    """Lets every record through. A page that was refused to somebody is no fault of the program's, and takes one line."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], PermissionDenied):
            record.exc_info = record.exc_text = None
        return True
