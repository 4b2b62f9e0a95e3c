"""thumbs in the order in which they were stored, for the monitor"""

from alembic import op
import sqlalchemy as sa

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "feedback_event_thumbs_idx",
        "feedback_event",
        ["stored_at", "event_id"],
        postgresql_where=sa.text("kind = 'thumbs'"),
    )


def downgrade() -> None:
    op.drop_index("feedback_event_thumbs_idx", table_name="feedback_event")
