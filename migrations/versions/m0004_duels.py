"""answers that were given to the other arm by lot"""

from alembic import op
import sqlalchemy as sa

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("response", sa.Column("duel", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.create_index(
        "response_duel_idx", "response", ["rollout_id", "created_at"], postgresql_where=sa.text("duel")
    )


def downgrade() -> None:
    op.drop_index("response_duel_idx", table_name="response")
    op.drop_column("response", "duel")
