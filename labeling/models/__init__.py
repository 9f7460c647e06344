"""The database, one noun per file. See docs/data-model.md for the picture."""

from labeling.models.batches import Batch, LabelSchema
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
from labeling.models.submissions import Origin, Revision, Submission
from labeling.models.tasks import Draft, DraftCopy, Kind, Skip, Slot, Task, TaskResponse
from labeling.models.tokens import ApiToken

__all__ = [
    "Acknowledgement",
    "Activity",
    "ApiToken",
    "Author",
    "Batch",
    "Draft",
    "DraftCopy",
    "Evaluation",
    "Export",
    "GatewayKey",
    "GatewayUsage",
    "Group",
    "Import",
    "Instructions",
    "InstructionsDraft",
    "Invitation",
    "Kind",
    "LabelSchema",
    "ModelVersion",
    "Origin",
    "PayRule",
    "Promotion",
    "Prompt",
    "PseudonymKey",
    "Question",
    "QuestionMessage",
    "RateBucket",
    "Response",
    "Review",
    "Revision",
    "Role",
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
