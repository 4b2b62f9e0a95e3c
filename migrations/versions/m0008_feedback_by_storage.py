"""feedback in the order of its storage can be found by a range of time, at next to no cost when it is written"""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "feedback_event_stored_at_idx",
        "feedback_event",
        ["stored_at"],
        postgresql_using="brin",
        postgresql_with={"autosummarize": "on"},
    )


def downgrade() -> None:
    op.drop_index("feedback_event_stored_at_idx", table_name="feedback_event")
