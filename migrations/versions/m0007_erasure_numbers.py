"""erasures in the order of their commits"""

from alembic import op
import sqlalchemy as sa

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    number = sa.Column("erasure_no", sa.BigInteger(), sa.Identity(always=True), nullable=False)
    op.add_column("erasure", number)
    op.create_unique_constraint(op.f("erasure_erasure_no_key"), "erasure", ["erasure_no"])


def downgrade() -> None:
    op.drop_column("erasure", "erasure_no")
