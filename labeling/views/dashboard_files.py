"""The dashboards' figures as CSV files."""

from django.http import Http404, HttpResponse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET

from labeling.models import Kind, Statistic
from labeling.views import rounds
from labeling.views.access import Request, role_required
from labeling.views.csv_files import csv_file
from labeling.views.dashboards import (
    Scope,
    active_batches,
    agreement_names,
    days_of,
    labeler_rows,
    outlooks,
    policy_tables,
)


@role_required("reviewer", "researcher")
@require_GET
def dashboard_csv(request: Request, name: str) -> HttpResponse:
    """The rows of a figure. 404 for a figure that there is not, 409 while it is being computed."""
    scope = Scope(request.GET)
    if name not in TABLES:
        raise Http404
    rows = TABLES[name](scope)
    if rows is None:
        return HttpResponse(_("Not computed yet: try again in a minute."), status=409, content_type="text/plain")
    return csv_file(name, rows[0], rows[1:])


def _progress(scope: Scope) -> list[list]:
    head = ["batch", "kind", "seats", "submitted", "open", "leased", "waiting", "accepted", "returned", "rejected",
            "per_day", "done_at", "earliest", "latest"]  # fmt: skip
    rows: list[list] = [head]
    for each in outlooks(active_batches(), timezone.now()):
        p, f = each.progress, each.forecast
        ends = [end.isoformat(timespec="minutes") if end else "" for end in (f.done_at, f.earliest, f.latest)]
        rows.append([each.batch.name, each.batch.kind, p.seats, p.submitted, p.open, p.leased, p.waiting, p.accepted,
                     p.returned, p.rejected, round(f.pace, 3), *ends])  # fmt: skip
    return rows


def _throughput(scope: Scope) -> list[list] | None:
    content = scope.statistic(Statistic.Kind.THROUGHPUT).content
    if not content:
        return None
    counts = zip(*(content["days"][kind] for kind in Kind.values), strict=True)
    return [["day", *Kind.values], *([day.isoformat(), *n] for day, n in zip(days_of(content), counts, strict=True))]


def _labelers(scope: Scope) -> list[list] | None:
    statistic = scope.statistic(Statistic.Kind.THROUGHPUT)
    if statistic.content is None:
        return None
    head = ["labeler", "email", *Kind.values, "active_hours", "last_28_days", "last_day"]
    return [head, *([
        str(row["person"]), row["person"].email, *(row[kind] for kind in Kind.values), round(row["hours"], 2),
        row["recent_sum"], row["last"],
    ] for row in labeler_rows(statistic.content, scope))]  # fmt: skip


def _policies(scope: Scope) -> list[list] | None:
    content = scope.statistic(Statistic.Kind.POLICIES).content
    if not content:
        return None
    head = ["policy", "score", "low", "high", "share_of_points", "comparisons", "apart"]
    return [head, *(
        [row["model"].name, *(row[name] for name in ("score", "low", "high", "share", "count", "apart"))]
        for row in policy_tables(content)["table"]
    )]  # fmt: skip


def _pairs(scope: Scope) -> list[list] | None:
    content = scope.statistic(Statistic.Kind.POLICIES).content
    if not content:
        return None
    models = policy_tables(content)["models"]
    rows: list[list] = [["policy", "against", "points", "comparisons", "ties"]]
    for i, model in enumerate(models):
        for j, other in enumerate(models):
            if count := round(content["points"][i][j] + content["points"][j][i]):
                rows.append([model.name, other.name, content["points"][i][j], count, content["ties"][i][j]])
    return rows


def _agreement(scope: Scope) -> list[list] | None:
    content = scope.statistic(Statistic.Kind.AGREEMENT).content
    if not content:
        return None
    rows: list[list] = [["week", "among", "share", "low", "high", "tasks", "pairs"]]
    for key in agreement_names():
        for week, f in zip(content["weeks"], content[key], strict=True):
            rows.append([week, key, f["value"], f["low"], f["high"], f["tasks"], f["pairs"]])
    return rows


def _rounds(scope: Scope) -> list[list]:
    return rounds.csv_rows()


TABLES = {
    "progress": _progress,
    "throughput": _throughput,
    "labelers": _labelers,
    "policies": _policies,
    "pairs": _pairs,
    "agreement": _agreement,
    "rounds": _rounds,
}
