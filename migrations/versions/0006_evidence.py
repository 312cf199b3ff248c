"""The evidence for answers: kinds of places, how people ask for them, and which POIs are of each.

Revision: 0006
"""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# The functions go because init makes them anew with more columns.
STATEMENTS = """
CREATE TABLE callipper.kind (
    version integer NOT NULL,
    kind_id integer NOT NULL,
    name text NOT NULL,
    said boolean NOT NULL,
    pois integer NOT NULL DEFAULT 0,
    own_pois integer NOT NULL DEFAULT 0,
    CONSTRAINT kind_pkey PRIMARY KEY (version, kind_id),
    CONSTRAINT kind_version_name_key UNIQUE (version, name),
    CONSTRAINT kind_version_fkey FOREIGN KEY (version) REFERENCES callipper.model (version) ON DELETE CASCADE
);
COMMENT ON TABLE callipper.kind IS 'kinds of places that the POIs of a model version are of';
COMMENT ON COLUMN callipper.kind.name IS 'as a person says it: "bicycle shop"';
COMMENT ON COLUMN callipper.kind.said IS 'whether describe may say it';
COMMENT ON COLUMN callipper.kind.pois IS 'POIs of this kind, by their category or by their name';
COMMENT ON COLUMN callipper.kind.own_pois IS 'POIs whose category is this kind; each POI counts for one kind';

CREATE TABLE callipper.kind_phrase (
    version integer NOT NULL,
    kind_id integer NOT NULL,
    phrase text NOT NULL,
    vec @extschema:vector@.vector NOT NULL,
    CONSTRAINT kind_phrase_pkey PRIMARY KEY (version, kind_id, phrase),
    CONSTRAINT kind_phrase_version_kind_id_fkey FOREIGN KEY (version, kind_id)
        REFERENCES callipper.kind (version, kind_id) ON DELETE CASCADE
) WITH (toast_tuple_target = 8160);
COMMENT ON TABLE callipper.kind_phrase IS 'the names of a kind and the phrases by which people ask for it';
COMMENT ON COLUMN callipper.kind_phrase.vec IS 'the sentence encoder''s vector of the phrase, unit length';

CREATE TABLE callipper.point_kind (
    version integer NOT NULL,
    point_id bigint NOT NULL,
    kind_id integer NOT NULL,
    by_name boolean NOT NULL,
    easting double precision NOT NULL,
    northing double precision NOT NULL,
    i integer NOT NULL GENERATED ALWAYS AS (floor(easting / 100.0::float8)::integer) STORED,
    j integer NOT NULL GENERATED ALWAYS AS (floor(northing / 100.0::float8)::integer) STORED,
    CONSTRAINT point_kind_pkey PRIMARY KEY (point_id, kind_id, version),
    CONSTRAINT point_kind_version_fkey FOREIGN KEY (version) REFERENCES callipper.model (version)
) PARTITION BY LIST (version);
CREATE INDEX point_kind_kind_id_idx ON callipper.point_kind (kind_id);
CREATE INDEX point_kind_i_j_idx ON callipper.point_kind (i, j);
COMMENT ON TABLE callipper.point_kind IS 'the kinds of each training POI, and where it stands';
COMMENT ON COLUMN callipper.point_kind.by_name IS 'whether the POI''s name says so; false for the kind of its category';
COMMENT ON COLUMN callipper.point_kind.easting IS 'metres in the CRS of the model';
COMMENT ON COLUMN callipper.point_kind.northing IS 'metres in the CRS of the model';
COMMENT ON COLUMN callipper.point_kind.i IS 'column of the square of 100 m';
COMMENT ON COLUMN callipper.point_kind.j IS 'row of the square of 100 m';

CREATE TABLE callipper.poi_density (
    version integer NOT NULL,
    i integer NOT NULL,
    j integer NOT NULL,
    pois real NOT NULL,
    CONSTRAINT poi_density_pkey PRIMARY KEY (version, i, j),
    CONSTRAINT poi_density_version_fkey FOREIGN KEY (version) REFERENCES callipper.model (version) ON DELETE CASCADE
);
COMMENT ON TABLE callipper.poi_density IS 'POIs within 250 m of the middle of each square of 100 m that has POIs';

ALTER TABLE callipper.point_embedding ADD COLUMN name text NOT NULL DEFAULT '';
COMMENT ON COLUMN callipper.point_embedding.name IS 'the POI''s name in the source, '''' for none';
CREATE INDEX point_embedding_name_idx ON callipper.point_embedding USING gin (to_tsvector('simple'::regconfig, name));

DROP FUNCTION IF EXISTS callipper.search(text, integer, @extschema:postgis@.geometry, integer);
DROP FUNCTION IF EXISTS callipper.search_points(text, integer, @extschema:postgis@.geometry, integer);
DROP FUNCTION IF EXISTS callipper.describe(@extschema:postgis@.geometry, integer, integer)
"""

DOWN = """
DROP VIEW IF EXISTS callipper.points CASCADE;
DROP FUNCTION IF EXISTS callipper.search(text, integer, @extschema:postgis@.geometry, integer);
DROP FUNCTION IF EXISTS callipper.search_points(text, integer, @extschema:postgis@.geometry, integer);
DROP FUNCTION IF EXISTS callipper.describe(@extschema:postgis@.geometry, integer, integer);
DROP FUNCTION IF EXISTS callipper._count_evidence(integer);
ALTER TABLE callipper.point_embedding DROP COLUMN name;
DROP TABLE callipper.poi_density;
DROP TABLE callipper.point_kind;
DROP TABLE callipper.kind_phrase;
DROP TABLE callipper.kind
"""


def upgrade() -> None:
    """Create the tables and the column."""
    for statement in STATEMENTS.split(";\n"):
        op.execute(statement)


def downgrade() -> None:
    """Drop them, and the functions that read them."""
    for statement in DOWN.split(";\n"):
        op.execute(statement)
