"""The database, one noun per file. See docs/data-model.md for the picture."""

from labeling.models.adjudications import Adjudication
from labeling.models.agreement import AgreementFigure, AgreementPair, AgreementReport, Between
from labeling.models.batches import Batch, LabelSchema
from labeling.models.consensus import Consensus
from labeling.models.erasures import Erasure
from labeling.models.exercises import PARTS_OF_KIND, Attempt, Exercise, Part, Purpose
from labeling.models.exports import Export, PseudonymKey
from labeling.models.gateway_keys import GatewayKey, GatewayUsage, RateBucket
from labeling.models.gold import GoldAnswer
from labeling.models.hours import Activity, PayRule, WorkEntry
from labeling.models.idempotency_keys import IdempotencyKey
from labeling.models.imports import Import
from labeling.models.instructions import Acknowledgement, Instructions, InstructionsDraft, Subject
from labeling.models.intake import Finding, IntakeDecision, LikenessKey
from labeling.models.labelers import LabelerNumbers, LabelerPause, LabelerRule, SubmissionNumbers
from labeling.models.model_versions import Evaluation, GateCheck, ModelVersion, Promotion
from labeling.models.people import Group, Invitation, Role, User, UserRole
from labeling.models.prompts import Author, Intake, Prompt, Split
from labeling.models.questions import Question, QuestionMessage
from labeling.models.responses import Response
from labeling.models.reviews import Review
from labeling.models.screenings import Application, Decision, Grade, Screening, ScreeningRules
from labeling.models.second_reviews import SecondReview, SecondReviewRate
from labeling.models.statistics import Statistic
from labeling.models.submissions import Origin, Revision, Submission
from labeling.models.tasks import Bookmark, Draft, DraftCopy, Kind, Look, Skip, Slot, Task, TaskResponse
from labeling.models.tokens import ApiToken
from labeling.models.webhooks import Webhook, WebhookDelivery
from labeling.models.writings import UseCase, Writing

__all__ = [
    "PARTS_OF_KIND",
    "Acknowledgement",
    "Activity",
    "Adjudication",
    "AgreementFigure",
    "AgreementPair",
    "AgreementReport",
    "ApiToken",
    "Application",
    "Attempt",
    "Author",
    "Batch",
    "Between",
    "Bookmark",
    "Consensus",
    "Decision",
    "Draft",
    "DraftCopy",
    "Erasure",
    "Evaluation",
    "Exercise",
    "Export",
    "Finding",
    "GateCheck",
    "GatewayKey",
    "GatewayUsage",
    "GoldAnswer",
    "Grade",
    "Group",
    "IdempotencyKey",
    "Import",
    "Instructions",
    "InstructionsDraft",
    "Intake",
    "IntakeDecision",
    "Invitation",
    "Kind",
    "LabelSchema",
    "LabelerNumbers",
    "LabelerPause",
    "LabelerRule",
    "LikenessKey",
    "Look",
    "ModelVersion",
    "Origin",
    "Part",
    "PayRule",
    "Promotion",
    "Prompt",
    "PseudonymKey",
    "Purpose",
    "Question",
    "QuestionMessage",
    "RateBucket",
    "Response",
    "Review",
    "Revision",
    "Role",
    "Screening",
    "ScreeningRules",
    "SecondReview",
    "SecondReviewRate",
    "Skip",
    "Slot",
    "Split",
    "Statistic",
    "Subject",
    "Submission",
    "SubmissionNumbers",
    "Task",
    "TaskResponse",
    "UseCase",
    "User",
    "UserRole",
    "Webhook",
    "WebhookDelivery",
    "WorkEntry",
    "Writing",
]
