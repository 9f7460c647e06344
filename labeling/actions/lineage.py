"""From a model back to the labels behind it: its ancestors, the exports they were trained on, the ids in those."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.utils.translation import gettext as _

from labeling.errors import Conflict
from labeling.models import Export, ModelVersion

ID_COLUMNS = {"demonstrations": "demonstration_id", "rankings": "ranking_id"}


@dataclass(frozen=True)
class Source:
    """An export that stands behind a model, and the models of its lineage that were trained on it."""

    export: Export
    models: list[ModelVersion]


def ancestry(model: ModelVersion) -> list[ModelVersion]:
    """The model and all that it was made from, oldest first. A query per generation."""
    found, newest = {model.pk: model}, [model]
    while newest:
        rows = ModelVersion.objects.filter(children__in=newest).exclude(pk__in=found).distinct()
        newest = list(rows.select_related("export").defer("manifest"))
        found |= {one.pk: one for one in newest}
    return [found[pk] for pk in sorted(found)]


def sources(model: ModelVersion) -> list[Source]:
    """The exports behind a model, its own and those of its ancestors, in order."""
    by_export: dict[int, Source] = {}
    for one in ancestry(model):
        if one.export:
            by_export.setdefault(one.export.pk, Source(one.export, [])).models.append(one)
    return [by_export[pk] for pk in sorted(by_export)]


def label_ids(export: Export) -> dict[str, list[str]]:
    """The ids of the submissions in an export, as its files have them, in their order. Raises Conflict when those are not here."""
    try:
        return {name: list(_ids(export.folder / f"{name}.parquet", column)) for name, column in ID_COLUMNS.items()}
    except OSError as error:
        raise Conflict(
            _("The files of export %(name)s are not here (%(status)s): its label ids cannot be read.")
            % {"name": export.name, "status": export.get_status_display()}
        ) from error


def _ids(path: Path, column: str) -> Iterator[str]:
    """The values of a column of this name, nested or not; row group by row group, that column alone."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        paths = [file.schema.column(i).path for i in range(len(file.schema))]
        wanted = [path for path in paths if path.rpartition(".")[2] == column]
        for group in range(file.num_row_groups):
            for row in file.read_row_group(group, columns=wanted).to_pylist():
                yield from _values(row)


def _values(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _values(inner)
