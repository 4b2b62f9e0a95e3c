"""an order for dirty turns, and dead letters that the topic lacks"""

from alembic import op
import sqlalchemy as sa

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(op.f("dirty_turn_marked_at_idx"), "dirty_turn", ["marked_at"])
    op.add_column("dead_letter", sa.Column("published_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index(
        "dead_letter_unpublished_idx",
        "dead_letter",
        ["dead_letter_id"],
        postgresql_where=sa.text("published_at IS NULL"),
    )


def downgrade() -> None:
    op.drop_index("dead_letter_unpublished_idx", table_name="dead_letter")
    op.drop_column("dead_letter", "published_at")
    op.drop_index(op.f("dirty_turn_marked_at_idx"), table_name="dirty_turn")
