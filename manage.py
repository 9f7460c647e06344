#!/usr/bin/env python
"""Heed's command line: migrations, imports, exports, the database. `python manage.py help` lists everything."""

import os
import sys


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "labeling.settings")
    try:
        from django.core.management import execute_from_command_line
        from django.db import OperationalError
    except ImportError as error:
        sys.exit(
            f"Django is not installed in {sys.executable} ({error}). Run `make demo` once, or use .venv/bin/python."
        )
    try:
        execute_from_command_line(sys.argv)
    except OperationalError:
        from django.conf import settings

        from labeling.postgres import explain_silence

        if advice := explain_silence(settings.BASE_DIR):
            sys.exit(advice)
        raise


if __name__ == "__main__":
    main()
