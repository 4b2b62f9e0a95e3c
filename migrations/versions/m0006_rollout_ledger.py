"""ledger of false promotions, reverse watches, approvals, measures of guardrails, scores of answers"""

from alembic import op
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "response_score",
        sa.Column("response_id", sa.Uuid(), nullable=False),
        sa.Column("scorer", sa.Text(), nullable=False),
        sa.Column("score", sa.Float(precision=53), nullable=False),
        sa.Column("scored_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("response_id", name=op.f("response_score_pkey")),
    )
    op.create_table(
        "rollout_ledger",
        sa.Column("rollout_id", sa.Uuid(), nullable=False),
        sa.Column("ledger", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("num_promoted", sa.Integer(), nullable=False),
        sa.Column("budget", sa.Float(precision=53), nullable=False),
        sa.Column("alpha", sa.Float(precision=53), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["rollout_id"], ["rollout.rollout_id"], name=op.f("rollout_ledger_rollout_id_fkey")
        ),
        sa.PrimaryKeyConstraint("rollout_id", name=op.f("rollout_ledger_pkey")),
    )
    op.add_column("rollout", sa.Column("watches", sa.Uuid(), nullable=True))
    op.add_column("rollout", sa.Column("approved_by", sa.Text(), nullable=True))
    op.add_column("rollout", sa.Column("approved_at", sa.DateTime(timezone=True), nullable=True))
    op.create_foreign_key(op.f("rollout_watches_fkey"), "rollout", "rollout", ["watches"], ["rollout_id"])
    op.add_column(
        "rollout_outcome",
        sa.Column(
            "measures",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
    )


def downgrade() -> None:
    op.drop_column("rollout_outcome", "measures")
    op.drop_constraint(op.f("rollout_watches_fkey"), "rollout", type_="foreignkey")
    op.drop_column("rollout", "approved_at")
    op.drop_column("rollout", "approved_by")
    op.drop_column("rollout", "watches")
    op.drop_table("rollout_ledger")
    op.drop_table("response_score")
