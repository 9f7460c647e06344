"""Statements that every claim and every submit asks, written out, and planned once for each connection.

Built anew by the ORM and planned anew by PostgreSQL they cost several times what they do, and passed through the cursors of Django and
psycopg, which quote each value into the text and have PostgreSQL read it, eight times: so they go to libpq with their values beside
them. Rows come back as tuples; `row_of` makes them model instances.
"""

import json
from functools import cache
from typing import Any, TypeVar

import psycopg
from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, connection, connections
from django.db.models import Field, JSONField, Model
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus, TransactionStatus

Row = TypeVar("Row", bound=Model)


class Statement:
    """SQL with `%(name)s` where its values go, each of a type; named in PostgreSQL's log. Prepared when a connection first runs it, unless
    PREPARED_STATEMENTS=0 says that a pooler hands out another connection for every transaction.

    Name columns, never `*`: a plan does not outlive a change of what it returns.
    """

    def __init__(self, name: str, sql: str, **types: str):
        self.name, self.types = f"heed_{name}", types
        self.plain = f"/* {self.name} */ " + sql % {n: f"%({n})s::{kind}" for n, kind in types.items()}
        self.prepare = f"PREPARE {self.name} ({', '.join(types.values())}) AS {sql}" % {
            n: f"${i}" for i, n in enumerate(types, start=1)
        }
        self.returns = sql.lstrip().startswith("SELECT") or " RETURNING " in sql
        self.libpq_name = self.name.encode()

    def rows(self, **values: Any) -> list[tuple]:
        """Run it; what it returns."""
        database = connections[DEFAULT_DB_ALIAS]
        if database.queries_logged or database.execute_wrappers or not settings.PREPARED_STATEMENTS:
            return self._by_cursor(values)  # where whoever counts or logs statements sees it
        link = _ready(database)
        with database.wrap_database_errors:
            if self.name not in link.prepared:
                link.run(self.prepare.encode())
                link.prepared.add(self.name)
            return link.execute(self.libpq_name, [values[name] for name in self.types])

    def _by_cursor(self, values: dict[str, Any]) -> list[tuple]:
        with connection.cursor() as cursor:
            cursor.execute(self.plain, values)
            return cursor.fetchall() if self.returns else []

    def row(self, **values: Any) -> tuple | None:
        """Its first row, or None."""
        return next(iter(self.rows(**values)), None)


class Link:
    """A connection of psycopg's, spoken to past its cursors, and the names of what is prepared on it."""

    def __init__(self, raw: psycopg.Connection):
        self.raw, self.libpq = raw, raw.pgconn
        self.adapt = Transformer(raw)  # as each of its cursors has one
        self.prepared: set[str] = set()

    def run(self, command: bytes) -> None:
        """A command without values. Raises psycopg's errors."""
        self._rows(self.libpq.exec_(command))

    def execute(self, name: bytes, values: list[Any]) -> list[tuple]:
        """The rows of a prepared statement, in the transaction that psycopg would run it in. Raises psycopg's errors."""
        if not self.raw.autocommit and self.libpq.transaction_status == TransactionStatus.IDLE:
            self.run(b"BEGIN")
        # As text, which PostgreSQL reads as the type that the statement declares.
        given: Any = self.adapt.dump_sequence(values, [PyFormat.TEXT] * len(values))
        return self._rows(self.libpq.exec_prepared(name, given))

    def _rows(self, result: Any) -> list[tuple]:
        if result.status == ExecStatus.TUPLES_OK:
            self.adapt.set_pgresult(result)
            return self.adapt.load_rows(0, result.ntuples, tuple)
        if result.status != ExecStatus.COMMAND_OK:
            raise error_from_result(result)
        return []


def _ready(database: Any) -> Link:
    """The open connection, looked after as Django does before it makes a cursor: found dead at a request's first statement it is
    opened anew (CONN_HEALTH_CHECKS), and a transaction that failed takes no more."""
    if database.health_check_enabled and not database.health_check_done and database.connection is not None:
        if not _answers(database.connection):
            database.close()
        database.health_check_done = True
    database.ensure_connection()
    database.validate_no_broken_transaction()
    raw = database.connection
    link = vars(raw).get("heed_link")
    if link is None:
        link = vars(raw)["heed_link"] = Link(raw)
    return link


def _answers(raw: psycopg.Connection) -> bool:
    try:
        return raw.pgconn.exec_(b"").status == ExecStatus.EMPTY_QUERY
    except psycopg.OperationalError:  # it is known already that the server has gone
        return False


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
    database = connections[DEFAULT_DB_ALIAS]
    [(row.pk,)] = statement.rows(**{f.attname: f.get_db_prep_save(getattr(row, f.attname), database) for f in fields})
    row._state.adding, row._state.db = False, database.alias
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
