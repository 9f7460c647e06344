"""Statements that every claim and every submit asks, written out, and planned once for each connection.

Built anew by the ORM and planned anew by PostgreSQL they cost several times what they do. Rows come back as tuples; `row_of` makes
them model instances.
"""

import json
from functools import cache
from typing import Any, TypeVar

from django.conf import settings
from django.db import connection
from django.db.models import Field, JSONField, Model

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
        self.returns = sql.lstrip().startswith("SELECT") or " RETURNING " in sql
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
            return cursor.fetchall() if self.returns else []

    def row(self, **values: Any) -> tuple | None:
        """Its first row, or None."""
        return next(iter(self.rows(**values)), None)


@cache
def _insert(model: type[Model]) -> tuple[Statement, list[Field]]:
    fields = [field for field in model._meta.concrete_fields if not field.primary_key]
    names, values = (
        ", ".join(made) for made in zip(*((f'"{f.column}"', f"%({f.attname})s") for f in fields), strict=True)
    )
    table = model._meta.db_table
    sql = f'INSERT INTO {table} ({names}) VALUES ({values}) RETURNING "id"'  # noqa: S608
    return Statement(f"insert_{table}", sql, **{f.attname: str(f.db_type(connection)) for f in fields}), fields


def insert(row: Row) -> Row:
    """Save a new row of a table with a plain key, as `save` would. Every field has a value here: the database's defaults are not used."""
    statement, fields = _insert(type(row))
    [(row.pk,)] = statement.rows(**{f.attname: f.get_db_prep_save(getattr(row, f.attname), connection) for f in fields})
    row._state.adding, row._state.db = False, connection.alias
    return row


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
