"""Statements that every claim and every submit asks, written out, and planned once for each connection.

Built anew by the ORM and planned anew by PostgreSQL they cost several times what they do. Rows come back as tuples; `row_of` makes
them model instances.
"""

import json
from functools import cache
from typing import Any, TypeVar

from django.conf import settings
from django.db import connection
from django.db.models import JSONField, Model

Row = TypeVar("Row", bound=Model)


class Statement:
    """SQL with `%(name)s` where its values go, each of a type; named in PostgreSQL's log. Prepared when a connection first runs it, unless
    PREPARED_STATEMENTS=0 says that a pooler hands out another connection for every transaction.

    Name columns, never `*`: a plan does not outlive a change of what it returns.
    """

    def __init__(self, name: str, sql: str, **types: str):
        self.name, self.types = f"heed_{name}", types
        self.plain = sql % {n: f"%({n})s::{kind}" for n, kind in types.items()}
        self.prepare = f"PREPARE {self.name} ({', '.join(types.values())}) AS {sql}" % {
            n: f"${i}" for i, n in enumerate(types, start=1)
        }
        self.execute = f"EXECUTE {self.name} ({', '.join(f'%({n})s' for n in types)})"

    def rows(self, **values: Any) -> list[tuple]:
        """Run it; what it returns."""
        with connection.cursor() as cursor:
            if not settings.PREPARED_STATEMENTS:
                cursor.execute(self.plain, values)
            else:
                prepared = vars(connection.connection).setdefault("heed_prepared", set())
                if self.name not in prepared:
                    with connection.wrap_database_errors:
                        cursor.cursor.execute(self.prepare)
                    prepared.add(self.name)
                cursor.execute(self.execute, values)
            return cursor.fetchall() if cursor.description else []

    def row(self, **values: Any) -> tuple | None:
        """Its first row, or None."""
        return next(iter(self.rows(**values)), None)


def columns_of(model: type[Model], of: str = "") -> str:
    """A model's columns, as `row_of` takes them; `of`: the table's name in the statement."""
    prefix = f"{of}." if of else ""
    return ", ".join(f'{prefix}"{field.column}"' for field in model._meta.concrete_fields)


@cache
def _fields(model: type[Model]) -> tuple[list[str], list[int]]:
    """Names, and which of them are JSON, which comes back as text."""
    fields = model._meta.concrete_fields
    return [field.attname for field in fields], [i for i, field in enumerate(fields) if isinstance(field, JSONField)]


def row_of(model: type[Row], values: tuple | list) -> Row:
    """The instance of all its columns' values."""
    names, documents = _fields(model)
    values = list(values)
    for i in documents:
        values[i] = None if values[i] is None else json.loads(values[i])
    return model.from_db(connection.alias, names, values)


def partly(model: type[Row], **values: Any) -> Row:
    """An instance of which these values were read; others are read when they are asked for."""
    names = [name for name in _fields(model)[0] if name in values]
    return model.from_db(connection.alias, names, [values[name] for name in names])
