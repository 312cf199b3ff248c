"""What a training run locks, so that there is one at a time.

Revision: 0004
"""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# A view, since VACUUM and ANALYZE of the whole database would wait for whoever locks a table, and a run takes hours. And here,
# not in sql/: to replace it, init would have to wait for the run too.
STATEMENTS = """
CREATE VIEW callipper.training_lock AS SELECT 'locked by the training run or refresh at work'::text AS purpose;
COMMENT ON VIEW callipper.training_lock IS
    'locked by a training run or refresh for as long as it lasts (LOCK TABLE ... IN SHARE UPDATE EXCLUSIVE MODE)'
"""


def upgrade() -> None:
    """Create it."""
    for statement in STATEMENTS.split(";\n"):
        op.execute(statement)


def downgrade() -> None:
    """Drop it."""
    op.execute("DROP VIEW callipper.training_lock")
