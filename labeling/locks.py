"""Locks by name, for what no row stands for: whoever asks for one that is held waits."""

from django.db import connection


def hold(name: str) -> None:
    """Hold the lock of this name until the transaction ends, however it ends."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"heed {name}"])
