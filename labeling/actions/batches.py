"""Batches: choosing prompts and responses, and materialising their tasks and seats."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from uuid import UUID

from django.db import transaction
from django.db.models import Exists, OuterRef, QuerySet
from django.utils.translation import gettext as _

from labeling import languages, locks
from labeling.actions import batch_rows, evaluations, people
from labeling.actions.instructions import ensure_evaluation
from labeling.errors import Conflict, Invalid, refuse
from labeling.models import Batch, Group, Intake, Kind, LabelSchema, ModelVersion, Prompt, Split, Task, User

MAX_OVERLAP = 50
MAX_GOLD_PERCENT = 50
MIN_K, MAX_K = 2, 12
ANY_GROUP = "any"  # said in so many words
PURPOSES = Batch.Purpose.values


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is asked for, checked and in canonical form: equal orders are equal batches."""

    kind: str
    purpose: str = Batch.Purpose.LABELING
    model_names: tuple[str, ...] = ()
    must_include: tuple[str, ...] = ()
    k: int | None = None
    overlap: int = 1
    group: str = ""
    language: str = ""
    skills: tuple[str, ...] = ()
    split: str = ""
    use_case: str = ""
    source: str = ""
    prompt_kind: str = ""
    prompt_ids: tuple[str, ...] = ()
    limit: int | None = None
    only_new: bool = False
    seed: int = 0
    priority: int = 0
    instructions: str = ""
    schema_version: int | None = None

    @property
    def is_evaluation(self) -> bool:
        return self.purpose == Batch.Purpose.EVALUATION

    def as_query(self) -> dict:
        """The order as stored with the batch; long parts by their digest. Names left empty are left out."""
        query = {name: value for name, value in vars(self).items() if value not in ("", (), None, False)}
        if not self.is_evaluation:
            del query["purpose"]  # an order from before there were others stays the same order
        for name in ("model_names", "must_include", "skills"):
            if name in query:
                query[name] = list(query[name])
        if self.prompt_ids:
            query["prompt_ids"] = {"count": len(self.prompt_ids), "sha256": _digest("\n".join(self.prompt_ids))}
        if self.instructions:
            query["instructions"] = {"sha256": _digest(self.instructions)}
        return query


def create_batch(
    *,
    name: str,
    kind: str,
    purpose: str = Batch.Purpose.LABELING,
    model_names: Iterable[str] = (),
    must_include: Iterable[str] = (),
    k: int | None = None,
    overlap: int = 1,
    group: str = "",
    language: str = "",
    skills: Iterable[str] = (),
    split: str = "",
    use_case: str = "",
    source: str = "",
    prompt_kind: str = "",
    prompt_ids: Iterable[str | UUID] = (),
    limit: int | None = None,
    only_new: bool = False,
    seed: int = 0,
    priority: int = 0,
    instructions: str = "",
    schema_version: int | None = None,
    by: User | None,
) -> Batch:
    """A batch with its tasks, their responses and seats. Repeated with the same order it answers with the same batch.

    Prompts: all, or those with this split, use case, source, kind, language or these UUIDs; `only_new` leaves out prompts that
    have a task of this kind in another batch; `limit` takes at most so many, at random by `seed`.
    Labelers: those of the group, or any; with a `language` only who knows it; only who has all `skills`.
    Responses (ranking): K of each prompt's responses by the named models, or by all models (never by people), distinct
    texts first, then distinct models, then by `seed`; every task holds one of each model in `must_include`. A prompt
    with fewer than K responses, fewer than two distinct texts or without such a model is left out and counted in
    `batch.counts`.
    The same order and seed choose the same rows on any installation that holds the same data.

    `group`: "" is the usual one (any), "any" says so. `purpose="evaluation"`: blind comparisons of the named models, two at least, on
    prompts of the test split; every task has exactly one response of each (K is their number); prompts that lack one, or whose
    responses are all alike, are left out and counted; the usual group is the held-out one; the labelers read the instructions for
    final evaluations, and the shipped ones come into force if nobody has published any.

    Raises Invalid when the order is wrong or nothing matches, Conflict when another batch has the name.
    """
    order = _check(
        Order(
            kind=kind,
            purpose=purpose or Batch.Purpose.LABELING,
            model_names=tuple(dict.fromkeys(model_names)),
            must_include=tuple(dict.fromkeys(must_include)),
            k=k,
            overlap=overlap,
            group=group,
            language=language,
            skills=people.skill_names(skills),
            split=split,
            use_case=use_case,
            source=source,
            prompt_kind=prompt_kind,
            prompt_ids=_uuids(prompt_ids),
            limit=limit,
            only_new=only_new,
            seed=seed,
            priority=priority,
            instructions=instructions.replace("\r\n", "\n"),
            schema_version=schema_version,
        ),
        name,
    )
    must_include = order.model_names if order.is_evaluation else order.must_include
    with transaction.atomic():
        locks.hold(f"batch {name}")  # of two callers with one name the second finds the first one's batch
        if existing := Batch.objects.filter(name=name).first():
            return _same_order(existing, order)
        batch = Batch.objects.create(
            name=name,
            kind=order.kind,
            purpose=order.purpose,
            instructions=order.instructions,
            schema=_schema(order.schema_version),
            responses_per_task=order.k,
            overlap=order.overlap,
            group=order.group,
            language=order.language,
            skills=list(order.skills),
            priority=order.priority,
            query=order.as_query(),
            created_by=by,
        )
        batch.counts = batch_rows.materialise(
            batch,
            prompts=matching_prompts(order),
            model_names=order.model_names,
            must_include=must_include,
            limit=order.limit,
            seed=order.seed,
        )
        batch.save(update_fields=["counts"])
        if batch.is_evaluation:
            ensure_evaluation(by=by)
            evaluations.ask_all(batch)
    return batch


@transaction.atomic
def set_status(*, batch: Batch, status: str, by: User | None) -> Batch:
    """Pause, resume or close a batch. No seat is given out while it is not active; whoever holds one may finish."""
    if status not in Batch.Status.values:
        raise Invalid(
            _("status %(said)r: expected one of %(known)s") % {"said": status, "known": ", ".join(Batch.Status.values)}
        )
    batch = Batch.objects.select_for_update().get(pk=batch.pk)
    batch.status = status
    batch.save(update_fields=["status"])
    return batch


@transaction.atomic
def edit(
    *,
    batch: Batch,
    instructions: str | None = None,
    priority: int | None = None,
    gold_percent: int | None = None,
    language: str | None = None,
    skills: Iterable[str] | None = None,
    by: User | None,
) -> Batch:
    """Change the instructions shown beside every task, the priority of its seats, the rate of gold tasks, and which labelers it is for
    (not its prompts). None leaves as it is. Who holds a seat may finish, whatever is asked for now.
    """
    batch = Batch.objects.select_for_update().get(pk=batch.pk)
    if instructions is not None:
        batch.instructions = instructions.replace("\r\n", "\n")
    if priority is not None:
        _check_priority(priority)
        batch.priority = priority
    if gold_percent is not None:
        if not 0 <= gold_percent <= MAX_GOLD_PERCENT:
            raise Invalid(
                _("gold_percent %(said)s: expected 0 to %(most)d") % {"said": gold_percent, "most": MAX_GOLD_PERCENT}
            )
        batch.gold_percent = gold_percent
    if language is not None:
        if language not in ["", *languages.CODES]:
            raise Invalid(_("language %r: unknown") % language)
        batch.language = language
    if skills is not None:
        batch.skills = list(people.skill_names(skills))
    batch.save(update_fields=["instructions", "priority", "gold_percent", "language", "skills"])
    return batch


# ---- the order ------------------------------------------------------------------------------------------------------


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _uuids(values: Iterable[str | UUID]) -> tuple[str, ...]:
    """Canonical UUIDs, sorted, each once. Raises Invalid naming the first that is none."""
    found = set()
    for value in values:
        try:
            found.add(str(UUID(str(value))))
        except ValueError:
            raise Invalid(f"prompt_ids: {value!r} is not a UUID") from None
    return tuple(sorted(found))


def _check(order: Order, name: str) -> Order:
    """The order in canonical form, if it makes sense. Raises Invalid with every problem."""
    problems = _evaluation_problems(order) if order.is_evaluation else []
    order = _with_the_usual(order)
    problems += [
        {"place": place, "message": message}
        for place, message, is_wrong in (
            ("name", "a batch needs a name of at most 100 characters", not name.strip() or len(name) > 100),
            ("kind", f"expected one of {', '.join(Kind.values)}", order.kind not in Kind.values),
            ("purpose", f"expected one of {', '.join(PURPOSES)}", order.purpose not in PURPOSES),
            ("k", f"a ranking needs K responses, {MIN_K} to {MAX_K}", _k_is_wrong(order)),
            ("model_names", "a demonstration batch has no models", _has_models(order) and order.kind != Kind.RANKING),
            ("overlap", f"1 to {MAX_OVERLAP} labelers per task", not 1 <= order.overlap <= MAX_OVERLAP),
            ("group", f"empty, any or one of {', '.join(Group.values)}", order.group not in ["", *Group.values]),
            ("language", "unknown language", order.language not in ["", *languages.CODES]),
            ("split", f"empty or one of {', '.join(Split.values)}", order.split not in ["", *Split.values]),
            ("limit", "at least 1 prompt", order.limit is not None and order.limit < 1),
            ("source", "unknown source", order.source not in ["", *Prompt.Source.values]),
            ("prompt_kind", "unknown kind of prompt", order.prompt_kind not in ["", *Prompt.Kind.values]),
            ("must_include", "more models than K", order.k is not None and len(order.must_include) > order.k),
            ("must_include", "names a model that model_names leaves out", _must_is_foreign(order)),
        )
        if is_wrong
    ]
    refuse(problems, between=": ")
    _check_priority(order.priority)
    _check_models_exist(order)
    return order


def _evaluation_problems(order: Order) -> list[dict]:
    """What an evaluation asks for otherwise than as a ranking of one response of each model on test prompts."""
    models = len(order.model_names)
    return [
        {"place": place, "message": message}
        for place, message, is_wrong in (
            ("purpose", "an evaluation is made of rankings", order.kind != Kind.RANKING),
            ("model_names", f"an evaluation compares {MIN_K} to {MAX_K} models", not MIN_K <= models <= MAX_K),
            ("k", f"an evaluation has one response of each model: {models}", order.k not in (None, models)),
            ("must_include", "in an evaluation every task has all models: leave this out", bool(order.must_include)),
            ("split", "an evaluation takes prompts of the test split alone", order.split not in ("", Split.TEST)),
        )
        if is_wrong
    ]


def _with_the_usual(order: Order) -> Order:
    """What was left open filled in."""
    usual_group = Group.HELD_OUT.value if order.is_evaluation else ""
    group = {"": usual_group, ANY_GROUP: ""}.get(order.group, order.group)
    if not order.is_evaluation:
        return replace(order, group=group)
    return replace(order, group=group, split=Split.TEST.value, k=len(order.model_names) or None)


def _k_is_wrong(order: Order) -> bool:
    if order.kind == Kind.DEMONSTRATION:
        return order.k is not None
    return order.k is None or not MIN_K <= order.k <= MAX_K


def _has_models(order: Order) -> bool:
    return bool(order.model_names or order.must_include)


def _must_is_foreign(order: Order) -> bool:
    return bool(order.model_names and set(order.must_include) - set(order.model_names))


def _check_priority(priority: int) -> None:
    if not -1000 <= priority <= 1000:
        raise Invalid(_("priority %s: expected -1000 to 1000") % priority)


def _check_models_exist(order: Order) -> None:
    names = {*order.model_names, *order.must_include}
    known = set(ModelVersion.objects.filter(name__in=names).values_list("name", flat=True))
    refuse(
        [{"place": "model_names", "message": f"no model named {name!r}"} for name in sorted(names - known)],
        between=": ",
    )


def _schema(version: int | None) -> LabelSchema:
    if version is None:
        return LabelSchema.latest()
    schema = LabelSchema.objects.filter(version=version).first()
    if schema is None:
        raise Invalid(f"schema_version: there is no label schema {version}")
    return schema


def _same_order(batch: Batch, order: Order) -> Batch:
    asked = order.as_query()
    if batch.query == asked:
        return batch
    differing = sorted(key for key in {*batch.query, *asked} if batch.query.get(key) != asked.get(key))
    raise Conflict(
        _("There is a batch named %(batch)r already, made by another order (different: %(differing)s).")
        % {"batch": batch.name, "differing": ", ".join(differing)}
    )


def matching_prompts(order: Order) -> QuerySet[Prompt]:
    """The open prompts that an order's filters let through, before responses are looked at.

    Raises Invalid for an unknown UUID, or one of a prompt that is not open, or in an evaluation not of the test split.
    """
    prompts = Prompt.objects.opened()
    if order.prompt_ids:
        named = Prompt.objects.filter(uuid__in=order.prompt_ids)
        prompts = prompts.filter(uuid__in=order.prompt_ids)
        known = {str(uuid) for uuid in named.values_list("uuid", flat=True)}
        if missing := sorted(set(order.prompt_ids) - known):
            raise Invalid(f"prompt_ids: there is no prompt {missing[0]} (unknown: {len(missing)})")
        if closed := named.exclude(intake=Intake.OPEN).order_by("uuid").values_list("uuid", "intake").first():
            raise Invalid(f"prompt_ids: prompt {closed[0]} is not open (intake: {closed[1]})")
        if order.is_evaluation and (other := named.exclude(split=Split.TEST).order_by("uuid").first()):
            raise Invalid(
                f"prompt_ids: prompt {other.uuid} is of the {other.split} split; an evaluation takes test prompts"
            )
    wanted = {"split": order.split, "use_case": order.use_case, "source": order.source, "kind": order.prompt_kind}
    wanted |= {"language": order.language}
    prompts = prompts.filter(**{field: value for field, value in wanted.items() if value})
    if order.only_new:
        prompts = prompts.exclude(Exists(Task.objects.filter(prompt=OuterRef("pk"), kind=order.kind)))
    return prompts
