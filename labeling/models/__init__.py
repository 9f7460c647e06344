"""The database, one noun per file. See docs/data-model.md for the picture."""

from labeling.models.batches import Batch, LabelSchema
from labeling.models.exercises import PARTS_OF_KIND, Attempt, Exercise, Part, Purpose
from labeling.models.exports import Export, PseudonymKey
from labeling.models.gateway_keys import GatewayKey, GatewayUsage, RateBucket
from labeling.models.hours import Activity, PayRule, WorkEntry
from labeling.models.imports import Import
from labeling.models.instructions import Acknowledgement, Instructions, InstructionsDraft
from labeling.models.model_versions import Evaluation, ModelVersion, Promotion
from labeling.models.people import Group, Invitation, Role, User, UserRole
from labeling.models.prompts import Author, Prompt, Split
from labeling.models.questions import Question, QuestionMessage
from labeling.models.responses import Response
from labeling.models.reviews import Review
from labeling.models.screenings import Application, Decision, Grade, Screening, ScreeningRules
from labeling.models.submissions import Origin, Revision, Submission
from labeling.models.tasks import Draft, DraftCopy, Kind, Skip, Slot, Task, TaskResponse
from labeling.models.tokens import ApiToken

__all__ = [
    "PARTS_OF_KIND",
    "Acknowledgement",
    "Activity",
    "ApiToken",
    "Application",
    "Attempt",
    "Author",
    "Batch",
    "Decision",
    "Draft",
    "DraftCopy",
    "Evaluation",
    "Exercise",
    "Export",
    "GatewayKey",
    "GatewayUsage",
    "Grade",
    "Group",
    "Import",
    "Instructions",
    "InstructionsDraft",
    "Invitation",
    "Kind",
    "LabelSchema",
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
    "Skip",
    "Slot",
    "Split",
    "Submission",
    "Task",
    "TaskResponse",
    "User",
    "UserRole",
    "WorkEntry",
]
