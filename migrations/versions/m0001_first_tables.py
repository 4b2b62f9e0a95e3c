"""first tables"""

from alembic import op
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(sa.schema.CreateSequence(sa.Sequence("pair_revision")))

    op.create_table(
        "api_key",
        sa.Column("key_hash", sa.Text(), nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("scopes", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("key_hash", name=op.f("api_key_pkey")),
    )
    op.create_table(
        "audit_log",
        sa.Column("audit_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("detail", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("previous_hash", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("audit_id", name=op.f("audit_log_pkey")),
    )
    op.create_table(
        "consumer_offset",
        sa.Column("consumer_group", sa.Text(), nullable=False),
        sa.Column("incarnation", sa.Text(), nullable=False),
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("partition", sa.Integer(), nullable=False),
        sa.Column("next_offset", sa.BigInteger(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint(
            "consumer_group", "incarnation", "topic", "partition", name=op.f("consumer_offset_pkey")
        ),
    )
    op.create_table(
        "dataset",
        sa.Column("dataset_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("manifest", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("num_train", sa.Integer(), nullable=False),
        sa.Column("num_dev", sa.Integer(), nullable=False),
        sa.Column("num_test", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("dataset_id", name=op.f("dataset_pkey")),
    )
    op.create_table(
        "dead_letter",
        sa.Column("dead_letter_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("incarnation", sa.Text(), nullable=False),
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("partition", sa.Integer(), nullable=False),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.Column("key", sa.LargeBinary(), nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("replayed_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("dead_letter_id", name=op.f("dead_letter_pkey")),
    )
    op.create_index(
        "dead_letter_coordinates_key", "dead_letter", ["incarnation", "topic", "partition", "offset"], unique=True
    )
    op.create_index(op.f("dead_letter_reason_idx"), "dead_letter", ["reason"], unique=False)
    op.create_table(
        "dirty_turn",
        sa.Column("turn_id", sa.Uuid(), nullable=False),
        sa.Column("marked_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("turn_id", name=op.f("dirty_turn_pkey")),
    )
    op.create_table(
        "erasure",
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("requested_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("completed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("counts", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.PrimaryKeyConstraint("user_id", name=op.f("erasure_pkey")),
    )
    op.create_table(
        "feedback_event",
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("response_id", sa.Uuid(), nullable=True),
        sa.Column("conversation_id", sa.Uuid(), nullable=True),
        sa.Column("turn_id", sa.Uuid(), nullable=True),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("value", sa.Float(precision=53), nullable=True),
        sa.Column("text", sa.Text(), nullable=True),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("rejected", sa.ARRAY(sa.Uuid()), nullable=False),
        sa.Column("reasons", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("occurred_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("signed", sa.Boolean(), nullable=False),
        sa.Column("stored_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("event_id", name=op.f("feedback_event_pkey")),
    )
    op.create_index(op.f("feedback_event_response_id_idx"), "feedback_event", ["response_id"], unique=False)
    op.create_index(op.f("feedback_event_user_id_idx"), "feedback_event", ["user_id"], unique=False)
    op.create_table(
        "feedback_state",
        sa.Column("subject_id", sa.Uuid(), nullable=False),
        sa.Column("slot", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("turn_id", sa.Uuid(), nullable=True),
        sa.Column("value", sa.Float(precision=53), nullable=True),
        sa.Column("text", sa.Text(), nullable=True),
        sa.Column("rejected", sa.ARRAY(sa.Uuid()), nullable=False),
        sa.Column("reasons", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("occurred_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.Column("signed", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("subject_id", "slot", "user_id", name=op.f("feedback_state_pkey")),
    )
    op.create_index(op.f("feedback_state_turn_id_idx"), "feedback_state", ["turn_id"], unique=False)
    op.create_index(op.f("feedback_state_user_id_idx"), "feedback_state", ["user_id"], unique=False)
    op.create_table(
        "lease",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("lease_pkey")),
    )
    op.create_table(
        "preference_pair",
        sa.Column("turn_id", sa.Uuid(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("chosen_id", sa.Uuid(), nullable=False),
        sa.Column("rejected_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("body_event_id", sa.Uuid(), nullable=True),
        sa.Column("weight", sa.Float(precision=53), nullable=False),
        sa.Column("signed", sa.Boolean(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("rev", sa.BigInteger(), server_default=sa.text("nextval('pair_revision')"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint(
            "turn_id", "source", "chosen_id", "rejected_id", "user_id", name=op.f("preference_pair_pkey")
        ),
    )
    op.create_index(op.f("preference_pair_rev_idx"), "preference_pair", ["rev"], unique=False)
    op.create_index(op.f("preference_pair_user_id_idx"), "preference_pair", ["user_id"], unique=False)
    op.create_table(
        "response",
        sa.Column("response_id", sa.Uuid(), nullable=False),
        sa.Column("conversation_id", sa.Uuid(), nullable=False),
        sa.Column("turn_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("messages", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("completion", sa.Text(), nullable=False),
        sa.Column("model_version", sa.Text(), nullable=False),
        sa.Column("track", sa.Text(), nullable=False),
        sa.Column("rollout_id", sa.Uuid(), nullable=True),
        sa.Column("stage", sa.Integer(), nullable=True),
        sa.Column("propensity", sa.Float(precision=53), nullable=False),
        sa.Column("fallback", sa.Boolean(), nullable=False),
        sa.Column("parameters", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("finish_reason", sa.Text(), nullable=True),
        sa.Column("completed", sa.Boolean(), nullable=False),
        sa.Column("idempotency_key", sa.Uuid(), nullable=True),
        sa.Column("latency_ms", sa.Float(precision=53), nullable=False),
        sa.Column("first_byte_ms", sa.Float(precision=53), nullable=True),
        sa.Column("num_prompt_tokens", sa.Integer(), nullable=True),
        sa.Column("num_completion_tokens", sa.Integer(), nullable=True),
        sa.Column("license", sa.Text(), nullable=True),
        sa.Column("eval_only", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("stored_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("response_id", name=op.f("response_pkey")),
    )
    op.create_index(op.f("response_conversation_id_idx"), "response", ["conversation_id"], unique=False)
    op.create_index(op.f("response_created_at_idx"), "response", ["created_at"], unique=False)
    op.create_index(
        op.f("response_rollout_id_user_id_created_at_idx"),
        "response",
        ["rollout_id", "user_id", "created_at"],
        unique=False,
        postgresql_where=sa.text("rollout_id IS NOT NULL"),
    )
    op.create_index(op.f("response_turn_id_idx"), "response", ["turn_id"], unique=False)
    op.create_index(op.f("response_user_id_idx"), "response", ["user_id"], unique=False)
    op.create_table(
        "switch",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("is_on", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("switch_pkey")),
    )
    op.create_table(
        "unary_label",
        sa.Column("response_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("turn_id", sa.Uuid(), nullable=False),
        sa.Column("label", sa.Boolean(), nullable=False),
        sa.Column("weight", sa.Float(precision=53), nullable=False),
        sa.Column("reasons", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("signed", sa.Boolean(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("rev", sa.BigInteger(), server_default=sa.text("nextval('pair_revision')"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("response_id", "user_id", name=op.f("unary_label_pkey")),
    )
    op.create_index(op.f("unary_label_rev_idx"), "unary_label", ["rev"], unique=False)
    op.create_index(op.f("unary_label_turn_id_idx"), "unary_label", ["turn_id"], unique=False)
    op.create_index(op.f("unary_label_user_id_idx"), "unary_label", ["user_id"], unique=False)
    op.create_table(
        "dataset_row",
        sa.Column("dataset_id", sa.Text(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("row_id", sa.Text(), nullable=False),
        sa.Column("split", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=True),
        sa.Column("event_ids", sa.ARRAY(sa.Uuid()), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["dataset_id"], ["dataset.dataset_id"], name=op.f("dataset_row_dataset_id_fkey")),
        sa.PrimaryKeyConstraint("dataset_id", "position", name=op.f("dataset_row_pkey")),
    )
    op.create_index(op.f("dataset_row_user_id_idx"), "dataset_row", ["user_id"], unique=False)
    op.create_table(
        "retrain_request",
        sa.Column("request_id", sa.Uuid(), nullable=False),
        sa.Column("crossing", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("dataset_id", sa.Text(), nullable=True),
        sa.Column("spec", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("watermark", sa.BigInteger(), nullable=True),
        sa.Column("dag_run_id", sa.Text(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("claimed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["dataset_id"], ["dataset.dataset_id"], name=op.f("retrain_request_dataset_id_fkey")),
        sa.PrimaryKeyConstraint("request_id", name=op.f("retrain_request_pkey")),
        sa.UniqueConstraint("crossing", name=op.f("retrain_request_crossing_key")),
    )
    op.create_index(op.f("retrain_request_status_idx"), "retrain_request", ["status"], unique=False)
    op.create_table(
        "training_run",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Uuid(), nullable=True),
        sa.Column("dataset_id", sa.Text(), nullable=False),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("base_version", sa.Text(), nullable=False),
        sa.Column("spec", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("metrics", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("directory", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["dataset_id"], ["dataset.dataset_id"], name=op.f("training_run_dataset_id_fkey")),
        sa.ForeignKeyConstraint(
            ["request_id"], ["retrain_request.request_id"], name=op.f("training_run_request_id_fkey")
        ),
        sa.PrimaryKeyConstraint("run_id", name=op.f("training_run_pkey")),
    )
    op.create_table(
        "model_version",
        sa.Column("model_version", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("directory", sa.Text(), nullable=False),
        sa.Column("parent", sa.Text(), nullable=True),
        sa.Column("run_id", sa.Text(), nullable=True),
        sa.Column("dataset_id", sa.Text(), nullable=True),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("contains_erased", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["dataset_id"], ["dataset.dataset_id"], name=op.f("model_version_dataset_id_fkey")),
        sa.ForeignKeyConstraint(["run_id"], ["training_run.run_id"], name=op.f("model_version_run_id_fkey")),
        sa.PrimaryKeyConstraint("model_version", name=op.f("model_version_pkey")),
    )
    op.create_table(
        "evaluation",
        sa.Column("evaluation_id", sa.Uuid(), nullable=False),
        sa.Column("model_version", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=True),
        sa.Column("gate", sa.Text(), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("measurements", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["model_version"], ["model_version.model_version"], name=op.f("evaluation_model_version_fkey")
        ),
        sa.ForeignKeyConstraint(["run_id"], ["training_run.run_id"], name=op.f("evaluation_run_id_fkey")),
        sa.PrimaryKeyConstraint("evaluation_id", name=op.f("evaluation_pkey")),
    )
    op.create_index(op.f("evaluation_model_version_idx"), "evaluation", ["model_version"], unique=False)
    op.create_table(
        "model_alias",
        sa.Column("alias", sa.Text(), nullable=False),
        sa.Column("model_version", sa.Text(), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["model_version"], ["model_version.model_version"], name=op.f("model_alias_model_version_fkey")
        ),
        sa.PrimaryKeyConstraint("alias", name=op.f("model_alias_pkey")),
    )
    op.create_table(
        "rollout",
        sa.Column("rollout_id", sa.Uuid(), nullable=False),
        sa.Column("canary_version", sa.Text(), nullable=False),
        sa.Column("stable_version", sa.Text(), nullable=False),
        sa.Column("policy", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("policy_hash", sa.Text(), nullable=False),
        sa.Column("alpha", sa.Float(precision=53), nullable=False),
        sa.Column("phase", sa.Text(), nullable=False),
        sa.Column("stage", sa.Integer(), nullable=False),
        sa.Column("weight", sa.Float(precision=53), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("applied_epoch", sa.BigInteger(), nullable=False),
        sa.Column("evidence", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("started_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("stage_started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["canary_version"], ["model_version.model_version"], name=op.f("rollout_canary_version_fkey")
        ),
        sa.ForeignKeyConstraint(
            ["stable_version"], ["model_version.model_version"], name=op.f("rollout_stable_version_fkey")
        ),
        sa.PrimaryKeyConstraint("rollout_id", name=op.f("rollout_pkey")),
    )
    op.create_index(op.f("rollout_phase_idx"), "rollout", ["phase"], unique=False)
    op.create_table(
        "rollout_assignment",
        sa.Column("rollout_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("track", sa.Text(), nullable=False),
        sa.Column("stage", sa.Integer(), nullable=False),
        sa.Column("weight", sa.Float(precision=53), nullable=False),
        sa.Column("response_id", sa.Uuid(), nullable=False),
        sa.Column("assigned_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["rollout_id"], ["rollout.rollout_id"], name=op.f("rollout_assignment_rollout_id_fkey")
        ),
        sa.PrimaryKeyConstraint("rollout_id", "user_id", name=op.f("rollout_assignment_pkey")),
    )
    op.create_table(
        "rollout_outcome",
        sa.Column("rollout_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("track", sa.Text(), nullable=False),
        sa.Column("stage", sa.Integer(), nullable=False),
        sa.Column("value", sa.Float(precision=53), nullable=True),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["rollout_id"], ["rollout.rollout_id"], name=op.f("rollout_outcome_rollout_id_fkey")),
        sa.PrimaryKeyConstraint("rollout_id", "user_id", name=op.f("rollout_outcome_pkey")),
    )
    op.create_index(
        "rollout_outcome_rollout_id_position_key", "rollout_outcome", ["rollout_id", "position"], unique=True
    )
    op.create_table(
        "rollout_transition",
        sa.Column("rollout_id", sa.Uuid(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("from_phase", sa.Text(), nullable=False),
        sa.Column("to_phase", sa.Text(), nullable=False),
        sa.Column("stage", sa.Integer(), nullable=False),
        sa.Column("weight", sa.Float(precision=53), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("applied_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["rollout_id"], ["rollout.rollout_id"], name=op.f("rollout_transition_rollout_id_fkey")
        ),
        sa.PrimaryKeyConstraint("rollout_id", "epoch", name=op.f("rollout_transition_pkey")),
    )


def downgrade() -> None:

    op.drop_table("rollout_transition")
    op.drop_index("rollout_outcome_rollout_id_position_key", table_name="rollout_outcome")
    op.drop_table("rollout_outcome")
    op.drop_table("rollout_assignment")
    op.drop_index(op.f("rollout_phase_idx"), table_name="rollout")
    op.drop_table("rollout")
    op.drop_table("model_alias")
    op.drop_index(op.f("evaluation_model_version_idx"), table_name="evaluation")
    op.drop_table("evaluation")
    op.drop_table("model_version")
    op.drop_table("training_run")
    op.drop_index(op.f("retrain_request_status_idx"), table_name="retrain_request")
    op.drop_table("retrain_request")
    op.drop_index(op.f("dataset_row_user_id_idx"), table_name="dataset_row")
    op.drop_table("dataset_row")
    op.drop_index(op.f("unary_label_user_id_idx"), table_name="unary_label")
    op.drop_index(op.f("unary_label_turn_id_idx"), table_name="unary_label")
    op.drop_index(op.f("unary_label_rev_idx"), table_name="unary_label")
    op.drop_table("unary_label")
    op.drop_table("switch")
    op.drop_index(op.f("response_user_id_idx"), table_name="response")
    op.drop_index(op.f("response_turn_id_idx"), table_name="response")
    op.drop_index(
        op.f("response_rollout_id_user_id_created_at_idx"),
        table_name="response",
        postgresql_where=sa.text("rollout_id IS NOT NULL"),
    )
    op.drop_index(op.f("response_created_at_idx"), table_name="response")
    op.drop_index(op.f("response_conversation_id_idx"), table_name="response")
    op.drop_table("response")
    op.drop_index(op.f("preference_pair_user_id_idx"), table_name="preference_pair")
    op.drop_index(op.f("preference_pair_rev_idx"), table_name="preference_pair")
    op.drop_table("preference_pair")
    op.drop_table("lease")
    op.drop_index(op.f("feedback_state_user_id_idx"), table_name="feedback_state")
    op.drop_index(op.f("feedback_state_turn_id_idx"), table_name="feedback_state")
    op.drop_table("feedback_state")
    op.drop_index(op.f("feedback_event_user_id_idx"), table_name="feedback_event")
    op.drop_index(op.f("feedback_event_response_id_idx"), table_name="feedback_event")
    op.drop_table("feedback_event")
    op.drop_table("erasure")
    op.drop_table("dirty_turn")
    op.drop_index(op.f("dead_letter_reason_idx"), table_name="dead_letter")
    op.drop_index("dead_letter_coordinates_key", table_name="dead_letter")
    op.drop_table("dead_letter")
    op.drop_table("dataset")
    op.drop_table("consumer_offset")
    op.drop_table("audit_log")
    op.drop_table("api_key")
    op.execute(sa.schema.DropSequence(sa.Sequence("pair_revision")))
