#!/usr/bin/env python
"""Heed's command line: migrations, imports, exports, the database. `python manage.py help` lists everything."""

import os
import sys


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "labeling.settings")
    try:
        from django.core.management import execute_from_command_line
    except ImportError as error:
        sys.exit(
            f"Django is not installed in {sys.executable} ({error}). Run `make demo` once, or use .venv/bin/python."
        )
    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
