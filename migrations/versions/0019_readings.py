"""Each reading of a question has its turn among the answers; functions behind search return more columns.

Revision: 0019
"""

from __future__ import annotations

from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

# init makes them anew.
STATEMENTS = """
DROP FUNCTION IF EXISTS callipper._relevant_points(integer, @extschema:vector@.vector, text);
DROP FUNCTION IF EXISTS callipper._kinds_asked(integer, @extschema:vector@.vector)
"""

DOWN = """
DROP FUNCTION IF EXISTS callipper._relevant_points(integer, @extschema:vector@.vector, text);
DROP FUNCTION IF EXISTS callipper._kinds_asked(integer, @extschema:vector@.vector);
DROP FUNCTION IF EXISTS callipper._in_turn(bigint[], float8[], float8[], integer[], float8[], float8, bigint);
DROP FUNCTION IF EXISTS callipper._describe_reach_m(integer, @extschema:postgis@.geometry)
"""


def upgrade() -> None:
    """Drop what init makes with other columns."""
    for statement in STATEMENTS.split(";\n"):
        op.execute(statement)


def downgrade() -> None:
    """Drop what only this revision has, or has with other columns."""
    for statement in DOWN.split(";\n"):
        op.execute(statement)
