"""Why a POI counts for a kind, in place of whether its name says so.

Revision: 0009
"""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

# What a published version knows stays true: a kind by name was one that the name is like. The function goes because init makes
# it anew with other columns.
STATEMENTS = """
ALTER TABLE callipper.point_kind ADD COLUMN basis smallint NOT NULL DEFAULT 0;
UPDATE callipper.point_kind SET basis = 3 WHERE by_name;
ALTER TABLE callipper.point_kind DROP COLUMN by_name;
ALTER TABLE callipper.point_kind ALTER COLUMN basis DROP DEFAULT;
COMMENT ON COLUMN callipper.point_kind.basis IS
    'why: 0 its category, 1 its name says so, 2 is like the kind''s, 3 hints at it, 4 a stop is named after one';
ALTER TABLE callipper.kind ADD COLUMN sure_pois real NOT NULL DEFAULT 0;
UPDATE callipper.kind SET sure_pois = own_pois;
ALTER TABLE callipper.kind ADD COLUMN landmark boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN callipper.kind.landmark IS 'whether a place is known by it, so that one counts more than a shop for describe';
COMMENT ON COLUMN callipper.kind.sure_pois IS
    'POIs of this kind that describe counts; a name that is like it, and each name of stops, by half';

DROP FUNCTION IF EXISTS callipper._kinds_here(integer, @extschema:postgis@.geometry)
"""

DOWN = """
DROP FUNCTION IF EXISTS callipper._standing_out(integer, @extschema:postgis@.geometry, integer);
DROP FUNCTION IF EXISTS callipper._kinds_here(integer, @extschema:postgis@.geometry);
ALTER TABLE callipper.kind DROP COLUMN sure_pois;
ALTER TABLE callipper.kind DROP COLUMN landmark;
ALTER TABLE callipper.point_kind ADD COLUMN by_name boolean NOT NULL DEFAULT false;
DELETE FROM callipper.point_kind WHERE basis = 4;
UPDATE callipper.point_kind SET by_name = basis > 0;
ALTER TABLE callipper.point_kind DROP COLUMN basis;
ALTER TABLE callipper.point_kind ALTER COLUMN by_name DROP DEFAULT;
COMMENT ON COLUMN callipper.point_kind.by_name IS 'whether the POI''s name says so; false for the kind of its category'
"""


def upgrade() -> None:
    """Keep what was published."""
    for statement in STATEMENTS.split(";\n"):
        op.execute(statement)


def downgrade() -> None:
    """Keep it but for what bus stops are named after."""
    for statement in DOWN.split(";\n"):
        op.execute(statement)
