"""The side of the blocks of a tile follows from the size of the cells.

Revision: 0013
"""

from __future__ import annotations

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Drop the function that knew only the zoom. One that also knows the size of cells takes its place."""
    op.execute("DROP FUNCTION IF EXISTS callipper._block_size(integer)")


def downgrade() -> None:
    """The functions of `sql/` are applied again by init."""
    op.execute("DROP FUNCTION IF EXISTS callipper._block_side(integer, float8, @extschema:postgis@.geometry)")
