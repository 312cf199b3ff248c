"""How much of a city is near a station, a stadium and the like: describe names one where few places have one.

Revision: 0018
"""

from __future__ import annotations

from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

STATEMENTS = """
ALTER TABLE callipper.kind ADD COLUMN prominent boolean NOT NULL DEFAULT false, ADD COLUMN area_share real;
COMMENT ON COLUMN callipper.kind.prominent IS
    'whether a quarter is known by one of them, so that describe names it where few places have one near';
COMMENT ON COLUMN callipper.kind.area_share IS
    'of the squares of 100 m that hold POIs, the share from which one is within 250 m; prominent kinds alone';
COMMENT ON COLUMN callipper.kind.landmark IS
    'whether a place is known by it; names that are only similar to a landmark''s do not count'
"""

DOWN = """
ALTER TABLE callipper.kind DROP COLUMN area_share, DROP COLUMN prominent;
COMMENT ON COLUMN callipper.kind.landmark IS 'whether places are known for it; describe counts each of its POIs twice'
"""


def upgrade() -> None:
    """Add the columns; the next training fills them."""
    for statement in STATEMENTS.split(";\n"):
        op.execute(statement)


def downgrade() -> None:
    """Remove the columns."""
    for statement in DOWN.split(";\n"):
        op.execute(statement)
