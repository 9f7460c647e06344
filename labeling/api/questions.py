"""/questions/: what labelers ask the team, and answers."""

from typing import Any
from uuid import UUID

from django.db.models import Prefetch
from django.http import Http404
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from labeling.actions import questions
from labeling.api.base import PageQuery, StrictSerializer, Text, Uuid, View, page, page_of, query_of
from labeling.api.reviews import TEAM
from labeling.api.schema import operation
from labeling.models import Kind, Question, QuestionMessage


class QuestionQuery(PageQuery):
    """Which questions, and which page of them, newest first."""

    is_open = serializers.BooleanField(required=False, help_text="An answer is awaited.")
    kind = serializers.ChoiceField(Kind.choices, required=False)


class QuestionMessageOut(serializers.Serializer):
    author = serializers.CharField()
    is_answer = serializers.BooleanField()
    text = serializers.CharField()
    created_at = serializers.DateTimeField()


class QuestionOut(serializers.Serializer):
    question_id = serializers.UUIDField()
    asker = serializers.CharField()
    task_id = serializers.UUIDField(allow_null=True)
    kind = serializers.ChoiceField(Kind.choices)
    is_open = serializers.BooleanField()
    asked_at = serializers.DateTimeField()
    messages = QuestionMessageOut(many=True)


class QuestionAnswerIn(StrictSerializer):
    key = Uuid(help_text="Your own for each answer: the same text under it again changes nothing.")
    text = Text(max_length=questions.MAX_CHARS)


class Questions(View):
    scopes = {"GET": "read"}
    readers = TEAM

    @operation(
        scope="read", answers={200: page_of(QuestionOut)}, problems=(422,), parameters=[QuestionQuery],
        operation_id="list_questions", summary="Questions of labelers, newest first",
    )  # fmt: skip
    def get(self, request: Request) -> Response:
        query = self.checked(QuestionQuery, query_of(request))
        chosen = {name: query[name] for name in ("is_open", "kind") if name in query}
        return page(request, _rows().filter(**chosen), _shown, query, newest_first=True)


class Answer(View):
    scopes = {"POST": "review"}

    @operation(
        scope="review", answers={200: QuestionOut}, request=QuestionAnswerIn, problems=(404,), creates=True,
        operation_id="answer_question", summary="Answer a question", description="The labeler who asked is told.",
    )  # fmt: skip
    def post(self, request: Request, question_uuid: UUID) -> Response:
        given = self.checked(QuestionAnswerIn, request.data)
        question = _rows().filter(uuid=question_uuid).first()
        if question is None:
            raise Http404(f"There is no question {question_uuid}.")
        questions.reply(question=question, **given, by=self.person)
        return Response(_shown(_rows().get(pk=question.pk)))


def _rows():
    said = Prefetch("messages", QuestionMessage.objects.select_related("author").order_by("id"))
    return Question.objects.select_related("asker", "task").prefetch_related(said)


def _shown(question: Question) -> dict[str, Any]:
    return {
        "question_id": question.uuid,
        "asker": str(question.asker),
        "task_id": question.task.uuid if question.task else None,
        "kind": question.kind,
        "is_open": question.is_open,
        "asked_at": question.asked_at,
        "messages": [
            {"author": str(m.author), "is_answer": m.is_answer, "text": m.text, "created_at": m.created_at}
            for m in question.messages.all()
        ],
    }
