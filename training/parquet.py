"""The contract's rows as Parquet: the Arrow schema of a row type, canonical JSON lines to a table and back.

Imported where it is needed: whoever only reads JSON Lines needs no pyarrow.
"""

import hashlib
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Struct
from pyarrow import json as arrow_json

from training.folders import settle


def table_of(chunk: bytes, schema: Any) -> Any:
    """Canonical JSON lines as an Arrow table, parsed in C++ and in one block so that no row is cut."""
    table = arrow_json.read_json(
        pa.BufferReader(chunk),
        read_options=arrow_json.ReadOptions(use_threads=False, block_size=len(chunk) + 1),
        parse_options=arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error"),
        memory_pool=pa.system_memory_pool(),  # can give back what it took
    )
    return table.cast(schema)


def writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """A writer whose bytes depend on the rows alone (and on pyarrow's version).

    Least and greatest values are kept of the columns that one filters by, not of texts: until the end the writer holds those of all
    row groups, which can be as long as the texts. Values are written plainly: zstd finds repetitions better than dictionaries do.
    """
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        use_dictionary=False,
        write_statistics=[field.name for field in schema if not pa.types.is_nested(field.type)],
        store_schema=False,
        memory_pool=pa.system_memory_pool(),
    )


SWITCH_SECONDS = 0.0002
SETTLE_BYTES = 8 * 2**20
"""After so much JSON it is put on disk, which it has to be before an export is one."""
PIECES_WAITING = 2


class Twins:
    """A JSON Lines file and its Parquet twin, which grow by pieces, some canonical lines each. Both are written in a thread, beside
    the making of the next ones.

    Use it in a `with` block; after it, `jsonl_sha256` and `jsonl_bytes` are those of the JSON Lines. What goes wrong in the
    thread is raised by the next `write`, or at the block's end.
    """

    def __init__(self, jsonl: Path, path: Path, schema: pa.Schema):
        self.schema = schema
        self.jsonl_bytes = 0
        self._hash = hashlib.sha256()
        self._jsonl = jsonl.open("wb")
        self._parquet = writer(path, schema)
        self._group: list[pa.Table] = []  # of the row group that is growing
        self._pool = ThreadPoolExecutor(1)
        self._to_write: deque[Future[None]] = deque()

    @property
    def jsonl_sha256(self) -> str:
        """SHA-256 of the JSON Lines so far, in hex."""
        return self._hash.hexdigest()

    def write(self, piece: bytes, is_last_of_group: bool) -> None:
        """Take some lines, once few wait before them; with the last of a row group the group is written."""
        self._wait(PIECES_WAITING)
        self._to_write.append(self._pool.submit(self._write, piece, is_last_of_group))

    def _write(self, piece: bytes, is_last_of_group: bool) -> None:
        self._jsonl.write(piece)
        self._hash.update(piece)
        if self.jsonl_bytes // SETTLE_BYTES < (self.jsonl_bytes + len(piece)) // SETTLE_BYTES:
            settle(self._jsonl)
        self.jsonl_bytes += len(piece)
        if piece:
            self._group.append(table_of(piece, self.schema))
        if is_last_of_group:
            group = pa.concat_tables(self._group)
            self._group.clear()
            self._parquet.write_table(group)
            del group
        pa.system_memory_pool().release_unused()  # what parsing and encoding leave behind is several times the piece

    def _wait(self, most: int = 0) -> None:
        while len(self._to_write) > most:
            self._to_write.popleft().result()

    def __enter__(self) -> "Twins":
        # The thread asks for the interpreter a dozen times a piece, and would wait for it 5 ms each time: as long as its work.
        self._switch_seconds = sys.getswitchinterval()
        sys.setswitchinterval(min(self._switch_seconds, SWITCH_SECONDS))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_exception: object) -> None:
        try:
            if kind is None:
                self._wait()
        finally:
            sys.setswitchinterval(self._switch_seconds)
            self._pool.shutdown()
            self._parquet.close()
            self._jsonl.close()


def schema_of(row_type: type[Struct]) -> Any:
    """The Arrow schema of a row type: the same fields in the same order, nullable where None is allowed."""
    return pa.schema([_arrow_field(field.name, field.type) for field in msgspec.structs.fields(row_type)])


def _arrow_field(name: str, annotation: Any) -> Any:
    options = [option for option in get_args(annotation) if option is not type(None)]
    nullable = type(None) in get_args(annotation)
    return pa.field(name, _arrow_type(options[0] if nullable else annotation), nullable=nullable)


def _arrow_type(annotation: Any) -> Any:
    if get_origin(annotation) is Annotated:
        return _arrow_type(get_args(annotation)[0])
    if get_origin(annotation) is list:
        return pa.list_(_arrow_field("element", get_args(annotation)[0]))
    if get_origin(annotation) is Literal:
        return pa.string()
    if isinstance(annotation, type) and issubclass(annotation, Struct):
        return pa.struct([_arrow_field(field.name, field.type) for field in msgspec.structs.fields(annotation)])
    return {str: pa.string(), int: pa.int64(), bool: pa.bool_()}[annotation]


def read_lines(path: Path, batch_rows: int) -> Iterator[bytes]:
    """The rows of a Parquet file as canonical JSON lines."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=batch_rows):
            for row in batch.to_pylist():
                yield msgspec.json.encode(row) + b"\n"
