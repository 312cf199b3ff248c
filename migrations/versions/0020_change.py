"""What a refresh replaced, kept so that two states of the POIs can be compared.

Revision: 0020
"""

from __future__ import annotations

from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

STATEMENTS = """
CREATE TABLE callipper.kept_state (
    version integer NOT NULL REFERENCES callipper.model (version) ON DELETE CASCADE,
    state integer NOT NULL,
    replaced_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT kept_state_pkey PRIMARY KEY (version, state)
);
COMMENT ON TABLE callipper.kept_state IS 'states of the POIs that a refresh was asked to keep, the earliest first';
COMMENT ON COLUMN callipper.kept_state.replaced_at IS 'when the refresh began that replaced it';
CREATE TABLE callipper.kept_point (
    version integer NOT NULL,
    state integer NOT NULL,
    point_id bigint NOT NULL,
    text text,
    name text,
    geom @extschema:postgis@.geometry(Point,4326),
    kinds integer[],
    CONSTRAINT kept_point_pkey PRIMARY KEY (version, state, point_id),
    CONSTRAINT kept_point_version_state_fkey FOREIGN KEY (version, state)
        REFERENCES callipper.kept_state (version, state) ON DELETE CASCADE
);
COMMENT ON TABLE callipper.kept_point IS
    'POIs as they were in a kept state; only those that are otherwise in the next state, or now';
COMMENT ON COLUMN callipper.kept_point.text IS 'what the model read; NULL if there was no such POI';
COMMENT ON COLUMN callipper.kept_point.kinds IS 'kind_id of each kind that it counted for';
CREATE TABLE callipper.kept_cell (
    version integer NOT NULL,
    state integer NOT NULL,
    cell_id bigint NOT NULL,
    easting double precision NOT NULL,
    northing double precision NOT NULL,
    emb @extschema:vector@.vector(256) NOT NULL,
    CONSTRAINT kept_cell_pkey PRIMARY KEY (version, state, cell_id),
    CONSTRAINT kept_cell_version_state_fkey FOREIGN KEY (version, state)
        REFERENCES callipper.kept_state (version, state) ON DELETE CASCADE
);
COMMENT ON TABLE callipper.kept_cell IS
    'embeddings of cells as they were in a kept state; only those within 250 m of a POI in kept_point';
COMMENT ON COLUMN callipper.kept_cell.easting IS 'of the middle of the cell, metres in the CRS of the model';
COMMENT ON COLUMN callipper.kept_cell.northing IS 'of the middle of the cell, metres in the CRS of the model'
"""

DOWN = """
DROP FUNCTION IF EXISTS callipper.changed(integer, integer, bigint, @extschema:postgis@.geometry, integer);
DROP FUNCTION IF EXISTS callipper.list_states(integer);
DROP TABLE callipper.kept_cell, callipper.kept_point, callipper.kept_state
"""


def upgrade() -> None:
    """Add the tables, empty."""
    for statement in STATEMENTS.split(";\n"):
        op.execute(statement)


def downgrade() -> None:
    """Drop them, with the functions that show them."""
    for statement in DOWN.split(";\n"):
        op.execute(statement)
