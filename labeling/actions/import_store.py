"""The rows of an import in the database: chunk by chunk, in few queries, equal rows once."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from django.utils import timezone

from labeling.actions.import_rows import PromptItem, ResponseItem
from labeling.models import Author, ModelVersion, Prompt, Response, User
from labeling.models.prompts import split_of

Report = Callable[[str, str], None]
PlacedItem = tuple[str, PromptItem]


class Store:
    """Writes checked rows within the caller's transaction. Remembers models and authors between chunks."""

    def __init__(self, report: Report, *, by: User | None):
        self.report = report
        self.by = by
        self.models: dict[str, int] = {}
        self.made: set[int] = set()  # prompts of this import, so that a later row does not count them as present
        self.present: set[int] = set()
        self.occurrences: Counter[tuple[int, str | None, str]] = Counter()

    def write(self, chunk: list[PlacedItem], counts: Counter[str], *, is_dry: bool) -> None:
        """Store a chunk; `is_dry` only checks it against what is stored. Adds to `counts`."""
        authors = self._authors(chunk, counts, is_dry)
        prompts = self._prompts(chunk, authors, counts, is_dry)
        if prompts is not None:
            self._responses(zip((item for _, item in chunk), prompts, strict=True), counts)

    # ---- authors ----------------------------------------------------------------------------------------------------

    def _authors(self, chunk: list[PlacedItem], counts: Counter[str], is_dry: bool) -> dict[str, Author]:
        """The authors of a chunk by key, made where they are new. An author's split is for ever: conflicts are reported."""
        named = [(place, item) for place, item in chunk if item.author and item.messages]
        keys = {item.author for _, item in named}
        authors = {author.key: author for author in Author.objects.filter(key__in=keys)}
        new: dict[str, Author] = {}
        for place, item in named:
            key = str(item.author)
            author = authors.get(key) or new.get(key)
            if author is None:
                split = item.split or split_of(key)
                author = new[key] = Author(key=key, organization=item.organization, split=split)
            if item.split and item.split != author.split:
                self.report(f"{place}: field split", f"author {key!r} is in split {author.split}; it never changes")
        if new and not is_dry:
            Author.objects.bulk_create(new.values(), ignore_conflicts=True)
            new = {author.key: author for author in Author.objects.filter(key__in=new)}
            counts["authors_new"] += len(new)
        return authors | new

    # ---- prompts ----------------------------------------------------------------------------------------------------

    def _prompts(
        self, chunk: list[PlacedItem], authors: dict[str, Author], counts: Counter[str], is_dry: bool
    ) -> list[int] | None:
        """The primary key of each item's prompt, made where it is new; None when something was reported."""
        by_digest, by_external, by_uuid = self._known(chunk)
        new: dict[str, Prompt] = {}
        is_fine = True
        for place, item in chunk:
            problem = self._conflict(item, by_digest, by_external, by_uuid, new, authors)
            if problem:
                self.report(f"{place}: field {problem[0]}", problem[1])
                is_fine = False
            elif item.messages and item.content_sha256 not in by_digest and item.content_sha256 not in new:
                made = new[item.content_sha256] = self._new_prompt(item, authors)
                if made.external_id:
                    by_external[made.external_id] = made
        if not is_fine or is_dry:
            return None
        Prompt.objects.bulk_create(new.values(), batch_size=1000)
        keys = [self._key_of(item, by_digest, by_uuid, new) for _, item in chunk]
        self.made |= {prompt.pk for prompt in new.values()}
        self.present |= set(keys) - self.made
        counts["prompts_new"], counts["prompts_present"] = len(self.made), len(self.present)
        return keys

    def _known(self, chunk: list[PlacedItem]) -> tuple[dict[str, Prompt], dict[str, Prompt], dict[Any, Prompt]]:
        """The prompts here already that a chunk's rows mean, by content, by external id and by UUID."""
        fields = ("id", "uuid", "content_sha256", "external_id", "split")
        prompts = Prompt.objects.only(*fields)
        digests = {item.content_sha256 for _, item in chunk if item.messages}
        externals = {item.external_id for _, item in chunk if item.external_id}
        uuids = {item.prompt_id for _, item in chunk if item.prompt_id}
        return (
            {prompt.content_sha256: prompt for prompt in prompts.filter(content_sha256__in=digests)},
            {str(prompt.external_id): prompt for prompt in prompts.filter(external_id__in=externals)},
            {prompt.uuid: prompt for prompt in prompts.filter(uuid__in=uuids)},
        )

    @staticmethod
    def _conflict(
        item: PromptItem,
        by_digest: dict[str, Prompt],
        by_external: dict[str, Prompt],
        by_uuid: dict[Any, Prompt],
        new: dict[str, Prompt],
        authors: dict[str, Author],
    ) -> tuple[str, str] | None:
        """(field, message) when the row contradicts what is here or what came before it."""
        if item.prompt_id:
            known = by_uuid.get(item.prompt_id)
            if known is None:
                return "prompt_id", f"there is no prompt {item.prompt_id}"
            if item.messages and known.content_sha256 != item.content_sha256:
                return "prompt_id", f"prompt {item.prompt_id} has other messages than this row"
            return None
        same_id = by_external.get(item.external_id or "")
        if same_id and same_id.content_sha256 != item.content_sha256:
            return "external_id", f"{item.external_id!r} names another prompt already"
        same_text = by_digest.get(item.content_sha256) or new.get(item.content_sha256)
        if same_text and item.split and item.split != same_text.split:
            return "split", f"this prompt is in split {same_text.split} already; it never changes"
        return None

    @staticmethod
    def _new_prompt(item: PromptItem, authors: dict[str, Author]) -> Prompt:
        return Prompt.from_messages(
            item.messages,
            author=authors.get(item.author or ""),
            split=item.split,
            kind=item.kind,
            use_case=item.use_case,
            organization=item.organization,
            external_id=item.external_id,
            metadata=item.metadata,
            source=Prompt.Source.IMPORT,
        )

    @staticmethod
    def _key_of(
        item: PromptItem, by_digest: dict[str, Prompt], by_uuid: dict[Any, Prompt], new: dict[str, Prompt]
    ) -> int:
        if item.prompt_id:
            return by_uuid[item.prompt_id].pk
        return (new.get(item.content_sha256) or by_digest[item.content_sha256]).pk

    # ---- responses --------------------------------------------------------------------------------------------------

    def _responses(self, items: Iterable[tuple[PromptItem, int]], counts: Counter[str]) -> None:
        """Store the responses of a chunk; one with the same prompt, model and external id is the same response."""
        pairs = [(prompt, response) for item, prompt in items for response in item.responses]
        self._learn_models({response.model for _, response in pairs if response.model}, counts)
        rows: dict[tuple[int, int | None, str], Response] = {}
        for prompt, response in pairs:
            row = self._row(prompt, response)
            rows.setdefault((row.prompt_id, row.model_version_id, row.external_id), row)
        known = Response.objects.filter(prompt_id__in={prompt for prompt, _ in pairs})
        present = set(known.values_list("prompt_id", "model_version_id", "external_id")) & set(rows)
        fresh = [row for key, row in rows.items() if key not in present]
        Response.objects.bulk_create(fresh, batch_size=1000)
        for kind, origin in (("responses", Response.Origin.MODEL), ("demonstrations", Response.Origin.PERSON)):
            total = sum((response.model is None) == (origin == Response.Origin.PERSON) for _, response in pairs)
            made = sum(row.origin == origin for row in fresh)
            if total:
                counts[f"{kind}_new"] += made
                counts[f"{kind}_present"] += total - made

    def _learn_models(self, names: set[str], counts: Counter[str]) -> None:
        """Primary keys of models by name; a name not known yet becomes an outside model."""
        missing = names - set(self.models)
        self.models |= dict(ModelVersion.objects.filter(name__in=missing).values_list("name", "id"))
        new = sorted(missing - set(self.models))
        made = [ModelVersion(name=name, stage=ModelVersion.Stage.EXTERNAL, registered_by=self.by) for name in new]
        for version in ModelVersion.objects.bulk_create(made):
            self.models[version.name] = version.pk
        if new:
            counts["models_new"] += len(new)

    def _row(self, prompt: int, response: ResponseItem) -> Response:
        is_person = response.model is None
        return Response(
            prompt_id=prompt,
            text=response.text,
            text_sha256=response.text_sha256,
            origin=Response.Origin.PERSON if is_person else Response.Origin.MODEL,
            model_version_id=None if is_person else self.models[str(response.model)],
            sampling=response.sampling,
            finish_reason=response.finish_reason,
            external_id=response.external_id or self._own_id(prompt, response),
            created_at=timezone.now(),
        )

    def _own_id(self, prompt: int, response: ResponseItem) -> str:
        """An id for a response that came without: its text, and which time the text occurs in this import.

        So a repeated file adds nothing, and K samples of which two are alike stay K.
        """
        digest = response.text_sha256[:40]
        if response.model is None:
            return f"text:{digest}"
        key = (prompt, response.model, digest)
        self.occurrences[key] += 1
        return f"text:{digest}:{self.occurrences[key]}"
