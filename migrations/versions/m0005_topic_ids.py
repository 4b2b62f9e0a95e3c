"""the broker's own id of the topic that an offset belongs to"""

from alembic import op
import sqlalchemy as sa

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("consumer_offset", sa.Column("topic_id", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("consumer_offset", "topic_id")
