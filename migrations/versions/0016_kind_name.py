"""Names of kinds in other languages; describe takes the language of its answer.

Revision: 0016
"""

from __future__ import annotations

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

# init makes the functions anew, with the language as their last argument.
STATEMENTS = """
CREATE TABLE callipper.kind_name (
    version integer NOT NULL,
    language text NOT NULL,
    kind_id integer NOT NULL,
    name text NOT NULL,
    CONSTRAINT kind_name_pkey PRIMARY KEY (version, language, kind_id),
    CONSTRAINT kind_name_version_kind_id_fkey FOREIGN KEY (version, kind_id)
        REFERENCES callipper.kind (version, kind_id) ON DELETE CASCADE
);
COMMENT ON TABLE callipper.kind_name IS 'names of kinds in other languages than English, which describe returns';
COMMENT ON COLUMN callipper.kind_name.language IS 'ISO 639-1 code';
DROP FUNCTION IF EXISTS callipper.describe(@extschema:postgis@.geometry, bigint, integer);
DROP FUNCTION IF EXISTS callipper_map.describe_place(double precision, double precision, bigint)
"""

DOWN = """
DROP FUNCTION IF EXISTS callipper_map.describe_place(double precision, double precision, bigint, text);
DROP FUNCTION IF EXISTS callipper.describe(@extschema:postgis@.geometry, bigint, integer, text);
DROP FUNCTION IF EXISTS callipper._require_language(text, integer);
DROP TABLE callipper.kind_name
"""


def upgrade() -> None:
    """Add the table, and drop the functions whose arguments change."""
    for statement in STATEMENTS.split(";\n"):
        op.execute(statement)


def downgrade() -> None:
    """Drop the table and the functions."""
    for statement in DOWN.split(";\n"):
        op.execute(statement)
