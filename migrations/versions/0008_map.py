"""What people and tools see: the schema callipper_map, and what a version knows of each of its cells.

Revision: 0008
"""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

STATEMENTS = """
DROP FUNCTION IF EXISTS callipper.search_by_examples(text[], text[], integer, @extschema:postgis@.geometry, integer);
DROP FUNCTION IF EXISTS callipper._combine(integer, text[], text[]);

CREATE TABLE callipper.cell_summary (
    version integer NOT NULL,
    cell_id bigint NOT NULL,
    cluster integer NOT NULL,
    color text NOT NULL,
    top_texts text,
    support real NOT NULL,
    poi_count integer,
    CONSTRAINT cell_summary_pkey PRIMARY KEY (cell_id, version),
    CONSTRAINT cell_summary_version_fkey FOREIGN KEY (version) REFERENCES callipper.model (version)
) PARTITION BY LIST (version);
COMMENT ON TABLE callipper.cell_summary IS 'what callipper_map.cell says of each cell of a version';

CREATE TABLE callipper.cell_cluster (
    version integer NOT NULL,
    cluster integer NOT NULL,
    label text NOT NULL,
    centre @extschema:vector@.vector NOT NULL,
    CONSTRAINT cell_cluster_pkey PRIMARY KEY (version, cluster),
    CONSTRAINT cell_cluster_version_fkey FOREIGN KEY (version) REFERENCES callipper.model (version) ON DELETE CASCADE
);
COMMENT ON TABLE callipper.cell_cluster IS 'groups of cells of like embedding: k-means, fitted when the version was published';

CREATE TABLE callipper.color_axis (
    version integer NOT NULL,
    axis integer NOT NULL,
    weight @extschema:vector@.vector NOT NULL,
    bias real NOT NULL,
    CONSTRAINT color_axis_pkey PRIMARY KEY (version, axis),
    CONSTRAINT color_axis_version_fkey FOREIGN KEY (version) REFERENCES callipper.model (version) ON DELETE CASCADE
);
COMMENT ON TABLE callipper.color_axis IS
    'red, green and blue of a version''s cells: a linear map of the embedding, cut to 0 to 1'
"""

# Also run by init where the schema is missing: somebody has dropped it, or restored a dump without it.
MAP = """
COMMENT ON SCHEMA callipper_map IS 'what the active model says of cells and places, for people and their tools';

CREATE TABLE IF NOT EXISTS callipper_map.cell (
    cell_id bigint NOT NULL,
    geom @extschema:postgis@.geometry(Polygon, 4326) NOT NULL,
    lon double precision NOT NULL,
    lat double precision NOT NULL,
    cluster integer,
    cluster_label text,
    color text,
    top_texts text,
    support real,
    poi_count integer,
    model_version integer NOT NULL,
    CONSTRAINT cell_pkey PRIMARY KEY (cell_id)
);
CREATE INDEX IF NOT EXISTS cell_geom_idx ON callipper_map.cell USING gist (geom);
COMMENT ON TABLE callipper_map.cell IS 'grid cells of the active model';
COMMENT ON COLUMN callipper_map.cell.cell_id IS 'key of the cell, the same in callipper.cells';
COMMENT ON COLUMN callipper_map.cell.geom IS 'the cell in longitude and latitude';
COMMENT ON COLUMN callipper_map.cell.lon IS 'longitude of the middle of the cell, degrees';
COMMENT ON COLUMN callipper_map.cell.lat IS 'latitude of the middle of the cell, degrees';
COMMENT ON COLUMN callipper_map.cell.cluster IS 'number of the cell''s group of similar cells, from 0, the largest group';
COMMENT ON COLUMN callipper_map.cell.cluster_label IS 'up to three kinds of places that stand out in the cells of the group';
COMMENT ON COLUMN callipper_map.cell.color IS
    'a colour as #rrggbb: cells with similar embeddings have similar colours (three principal components)';
COMMENT ON COLUMN callipper_map.cell.top_texts IS
    'up to three kinds of places that stand out within 250 m of the middle, as describe returns them; NULL where none does';
COMMENT ON COLUMN callipper_map.cell.support IS
    'how well POIs support the embedding of the middle, 0 to 1, as loc_support returns it';
COMMENT ON COLUMN callipper_map.cell.poi_count IS 'POIs within 250 m of the middle';
COMMENT ON COLUMN callipper_map.cell.model_version IS 'model version of these values';

CREATE TABLE IF NOT EXISTS callipper_map.place (
    place_id bigint NOT NULL,
    geom @extschema:postgis@.geometry(Point, 4326) NOT NULL,
    lon double precision NOT NULL,
    lat double precision NOT NULL,
    name text,
    category text,
    kind text,
    text text NOT NULL,
    model_version integer NOT NULL,
    CONSTRAINT place_pkey PRIMARY KEY (place_id)
);
CREATE INDEX IF NOT EXISTS place_geom_idx ON callipper_map.place USING gist (geom);
COMMENT ON TABLE callipper_map.place IS 'points of interest (POIs) that the active model was trained on';
COMMENT ON COLUMN callipper_map.place.place_id IS 'key of the POI: poi_id of callipper.poi, or that of your own table';
COMMENT ON COLUMN callipper_map.place.geom IS 'position in longitude and latitude';
COMMENT ON COLUMN callipper_map.place.lon IS 'longitude, degrees';
COMMENT ON COLUMN callipper_map.place.lat IS 'latitude, degrees';
COMMENT ON COLUMN callipper_map.place.name IS 'its name; NULL if it has none';
COMMENT ON COLUMN callipper_map.place.category IS
    'its category in callipper.poi; NULL where the model was trained on another table';
COMMENT ON COLUMN callipper_map.place.kind IS 'the kind of place, as describe names it';
COMMENT ON COLUMN callipper_map.place.text IS 'the text that the model has read';
COMMENT ON COLUMN callipper_map.place.model_version IS 'model version that was trained on it';

DROP TYPE IF EXISTS callipper_map.cell_match CASCADE;
CREATE TYPE callipper_map.cell_match AS (
    cell_id bigint, geom @extschema:postgis@.geometry(Polygon, 4326), lon double precision, lat double precision,
    similarity double precision, percentile double precision
);
COMMENT ON TYPE callipper_map.cell_match IS 'a cell, and how well a question fits it';
DROP TYPE IF EXISTS callipper_map.cell_answer CASCADE;
CREATE TYPE callipper_map.cell_answer AS (
    rank bigint, cell_id bigint, geom @extschema:postgis@.geometry(Polygon, 4326), lon double precision, lat double precision,
    similarity double precision, percentile double precision, relevant integer, lift double precision, because text
);
COMMENT ON TYPE callipper_map.cell_answer IS 'a cell among the best for a question, and the reasons';
DROP TYPE IF EXISTS callipper_map.place_match CASCADE;
CREATE TYPE callipper_map.place_match AS (
    place_id bigint, geom @extschema:postgis@.geometry(Point, 4326), lon double precision, lat double precision, name text,
    kind text, similarity double precision, percentile double precision
);
COMMENT ON TYPE callipper_map.place_match IS 'a POI, and how well a question fits where it is'
"""

DOWN = """
DROP SCHEMA callipper_map CASCADE;
DROP FUNCTION IF EXISTS callipper.search_by_examples(text[], text[], integer, @extschema:postgis@.geometry, integer,
    @extschema:postgis@.geometry[], @extschema:postgis@.geometry[]);
DROP FUNCTION IF EXISTS callipper._combine(integer, text[], text[], @extschema:postgis@.geometry[],
    @extschema:postgis@.geometry[]);
DROP FUNCTION IF EXISTS callipper._write_map();
DROP TABLE callipper.color_axis;
DROP TABLE callipper.cell_cluster;
DROP TABLE callipper.cell_summary
"""


def upgrade() -> None:
    """Create the tables; init has made the schema, which may take a right that the owner of callipper does not have."""
    for statement in f"{STATEMENTS};\n{MAP}".split(";\n"):
        op.execute(statement)


def downgrade() -> None:
    """Drop them, and the layers that users have saved there."""
    for statement in DOWN.split(";\n"):
        op.execute(statement)
