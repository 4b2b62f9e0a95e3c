"""Every table of hone, once. Text ids are content hashes; uuids of people and conversations are keyed hashes."""

from hone.store.feedback_tables import (
    ConsumerOffsetRow,
    DeadLetterRow,
    DirtyTurnRow,
    FeedbackEventRow,
    FeedbackStateRow,
    PreferencePairRow,
    ResponseRow,
    UnaryLabelRow,
)
from hone.store.learning_tables import (
    DatasetItemRow,
    DatasetRow,
    EvaluationRow,
    ModelAliasRow,
    ModelVersionRow,
    RetrainRequestRow,
    TrainingRunRow,
)
from hone.store.table_base import REVISIONS, Base
from hone.store.traffic_tables import (
    ApiKeyRow,
    AuditRow,
    ErasureRow,
    LeaseRow,
    RolloutAssignmentRow,
    RolloutOutcomeRow,
    RolloutRow,
    RolloutTransitionRow,
    SwitchRow,
)

__all__ = [
    "REVISIONS",
    "ApiKeyRow",
    "AuditRow",
    "Base",
    "ConsumerOffsetRow",
    "DatasetItemRow",
    "DatasetRow",
    "DeadLetterRow",
    "DirtyTurnRow",
    "ErasureRow",
    "EvaluationRow",
    "FeedbackEventRow",
    "FeedbackStateRow",
    "LeaseRow",
    "ModelAliasRow",
    "ModelVersionRow",
    "PreferencePairRow",
    "ResponseRow",
    "RetrainRequestRow",
    "RolloutAssignmentRow",
    "RolloutOutcomeRow",
    "RolloutRow",
    "RolloutTransitionRow",
    "SwitchRow",
    "TrainingRunRow",
    "UnaryLabelRow",
]
