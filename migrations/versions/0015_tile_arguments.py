"""The functions that make the page's tiles take z, x and y last, so that pg_tileserv does not publish them.

Revision: 0015
"""

from __future__ import annotations

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Drop the functions with the earlier order."""
    op.execute(
        "DROP FUNCTION IF EXISTS callipper._match_tile(integer, integer, integer, integer, @extschema:vector@.vector)"
    )
    op.execute("DROP FUNCTION IF EXISTS callipper._layer_tile(integer, integer, integer, text)")


def downgrade() -> None:
    """The functions of `sql/` are applied again by init."""
    op.execute(
        "DROP FUNCTION IF EXISTS callipper._match_tile(integer, @extschema:vector@.vector, integer, integer, integer)"
    )
    op.execute("DROP FUNCTION IF EXISTS callipper._layer_tile(text, integer, integer, integer)")
