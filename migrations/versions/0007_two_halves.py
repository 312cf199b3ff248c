"""Embeddings of two halves: where kinds of places peak, and what the location encoder knows.

Embeddings of earlier versions get zeros for the first half, which changes no distance between them.

Revision: 0007
"""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

TABLES = ("cell_embedding", "point_embedding", "text_embedding", "cell_sample")

# init makes the views anew. Views of others on top of them would have to be made anew with the wider column.
DROP_VIEWS = """
DO $$
DECLARE
    dependent text;
BEGIN
    SELECT string_agg(DISTINCT r.ev_class::regclass::text, ', ') INTO dependent
        FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid
        WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass
            AND d.refobjid IN (to_regclass('callipper.cells'), to_regclass('callipper.points'))
            AND r.ev_class <> d.refobjid;
    IF dependent IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'dependent_objects_still_exist',
            MESSAGE = 'these views read callipper.cells or callipper.points, whose emb becomes vector(256): ' || dependent,
            HINT = 'Drop them, run callipper-db init again, and create them again.';
    END IF;
    DROP VIEW IF EXISTS callipper.cells;
    DROP VIEW IF EXISTS callipper.points;
END
$$
"""

STATEMENTS = """
CREATE TABLE callipper.kind_peak (
    version integer NOT NULL,
    kind_id integer NOT NULL,
    threshold real NOT NULL,
    gain real NOT NULL,
    direction @extschema:vector@.vector(128) NOT NULL,
    CONSTRAINT kind_peak_pkey PRIMARY KEY (version, kind_id),
    CONSTRAINT kind_peak_version_kind_id_fkey FOREIGN KEY (version, kind_id)
        REFERENCES callipper.kind (version, kind_id) ON DELETE CASCADE
);
COMMENT ON TABLE callipper.kind_peak IS
    'what each kind of place adds to the first half of an embedding; a kind that came after the training adds nothing';
COMMENT ON COLUMN callipper.kind_peak.threshold IS 'POIs around a place count above this, for their surroundings';
COMMENT ON COLUMN callipper.kind_peak.gain IS 'factor on what is above the threshold';
COMMENT ON COLUMN callipper.kind_peak.direction IS 'unit length'
"""


def upgrade() -> None:
    """Create the table, and widen the embeddings."""
    op.execute(DROP_VIEWS)
    for statement in STATEMENTS.split(";\n"):
        op.execute(statement)
    for table in TABLES:
        op.execute(
            f"ALTER TABLE callipper.{table} ALTER COLUMN emb TYPE @extschema:vector@.vector(256) USING"
            " @extschema:vector@.vector_concat(array_fill(0::real, ARRAY[128])::@extschema:vector@.vector, emb)"
        )


def downgrade() -> None:
    """Keep the second halves, which are no embeddings of their own where a first half was not zero."""
    op.execute(DROP_VIEWS)
    for table in TABLES:
        op.execute(
            f"ALTER TABLE callipper.{table} ALTER COLUMN emb TYPE @extschema:vector@.vector(128) USING"
            " @extschema:vector@.l2_normalize(@extschema:vector@.subvector(emb, 129, 128))"
        )
    op.execute("DROP TABLE callipper.kind_peak")
