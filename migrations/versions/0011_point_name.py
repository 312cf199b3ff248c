"""The sentence vectors of POIs' names: a question finds POIs by their own words too.

Revision: 0011
"""

from __future__ import annotations

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

# Versions that are there keep answering without them; the next training writes them. init makes the functions anew, with
# other columns.
STATEMENTS = """
CREATE TABLE callipper.point_name (
    version integer NOT NULL,
    point_id bigint NOT NULL,
    vec @extschema:vector@.halfvec NOT NULL,
    CONSTRAINT point_name_pkey PRIMARY KEY (point_id, version),
    CONSTRAINT point_name_version_fkey FOREIGN KEY (version) REFERENCES callipper.model (version)
) PARTITION BY LIST (version);
COMMENT ON TABLE callipper.point_name IS
    'the sentence encoder''s vector of name and category of each training POI with a name of its own';
COMMENT ON COLUMN callipper.point_name.vec IS 'unit length';
DROP FUNCTION IF EXISTS callipper._relevant_points(integer, @extschema:vector@.vector, text);
DROP FUNCTION IF EXISTS callipper._kinds_asked(integer, @extschema:vector@.vector)
"""

DOWN = """
DROP FUNCTION IF EXISTS callipper._relevant_points(integer, @extschema:vector@.vector, text);
DROP FUNCTION IF EXISTS callipper._kinds_asked(integer, @extschema:vector@.vector);
DROP FUNCTION IF EXISTS callipper._alike_points(integer, @extschema:vector@.vector);
DROP TABLE callipper.point_name
"""


def upgrade() -> None:
    """Add the table."""
    for statement in STATEMENTS.split(";\n"):
        op.execute(statement)


def downgrade() -> None:
    """Drop the table and what reads it."""
    for statement in DOWN.split(";\n"):
        op.execute(statement)
