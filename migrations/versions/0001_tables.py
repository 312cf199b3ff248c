"""Tables of POIs, text vectors, models, grids and embeddings.

Revision: 0001
"""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Written out rather than taken from tables.py: a migration says what was true when it was made. A test compares the two.
STATEMENTS = """
CREATE TABLE callipper.poi (
    poi_id bigint GENERATED ALWAYS AS IDENTITY,
    source text NOT NULL,
    source_id text NOT NULL,
    name text,
    category text,
    category_group text,
    description text,
    geom @extschema:postgis@.geometry(Point, 4326) NOT NULL,
    attributes jsonb NOT NULL DEFAULT '{}',
    CONSTRAINT poi_pkey PRIMARY KEY (poi_id),
    CONSTRAINT poi_source_source_id_key UNIQUE (source, source_id)
);
CREATE INDEX poi_geom_idx ON callipper.poi USING gist (geom);
COMMENT ON TABLE callipper.poi IS 'points of interest, one row per (source, source_id)';
COMMENT ON COLUMN callipper.poi.description IS 'the user''s own text; where NULL the training template is used';

CREATE TABLE callipper.text_encoder (
    text_encoder_id integer GENERATED ALWAYS AS IDENTITY,
    name text NOT NULL,
    revision text NOT NULL,
    dim integer NOT NULL,
    arch jsonb NOT NULL DEFAULT '{}',
    CONSTRAINT text_encoder_pkey PRIMARY KEY (text_encoder_id),
    CONSTRAINT text_encoder_name_revision_key UNIQUE (name, revision)
);
COMMENT ON TABLE callipper.text_encoder IS 'frozen sentence encoders that models were trained with';
COMMENT ON COLUMN callipper.text_encoder.revision IS 'sha256 of the weights file';

CREATE TABLE callipper.text_vector (
    text_encoder_id integer NOT NULL,
    text_hash bigint NOT NULL GENERATED ALWAYS AS (hashtextextended(text, 0::bigint)) STORED,
    text text NOT NULL,
    vec @extschema:vector@.vector NOT NULL,
    CONSTRAINT text_vector_pkey PRIMARY KEY (text_encoder_id, text_hash),
    CONSTRAINT text_vector_text_encoder_id_fkey FOREIGN KEY (text_encoder_id)
        REFERENCES callipper.text_encoder (text_encoder_id)
);
COMMENT ON TABLE callipper.text_vector IS 'what the sentence encoder made of each distinct text, so that none is encoded twice';

CREATE TABLE callipper.grid (
    grid_id integer GENERATED ALWAYS AS IDENTITY,
    kind text NOT NULL,
    size_m double precision NOT NULL,
    srid integer NOT NULL,
    CONSTRAINT grid_pkey PRIMARY KEY (grid_id),
    CONSTRAINT grid_kind_check CHECK (kind IN ('square', 'hexagon')),
    CONSTRAINT grid_size_m_check CHECK (size_m > 0),
    CONSTRAINT grid_kind_size_m_srid_key UNIQUE (kind, size_m, srid)
);
COMMENT ON TABLE callipper.grid IS 'regular grids, anchored at the origin of their CRS; models that share one share its cells';

CREATE TABLE callipper.cell (
    cell_id bigint GENERATED ALWAYS AS IDENTITY,
    grid_id integer NOT NULL,
    i integer NOT NULL,
    j integer NOT NULL,
    geom @extschema:postgis@.geometry(Polygon, 4326) NOT NULL,
    CONSTRAINT cell_pkey PRIMARY KEY (cell_id),
    CONSTRAINT cell_grid_id_fkey FOREIGN KEY (grid_id) REFERENCES callipper.grid (grid_id) ON DELETE CASCADE,
    CONSTRAINT cell_grid_id_i_j_key UNIQUE (grid_id, i, j)
);
CREATE INDEX cell_geom_idx ON callipper.cell USING gist (geom);
COMMENT ON TABLE callipper.cell IS 'the cells of the grids';

CREATE TABLE callipper.model (
    version integer GENERATED ALWAYS AS IDENTITY,
    status text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    activated_at timestamptz,
    srid integer NOT NULL,
    origin_easting double precision NOT NULL,
    origin_northing double precision NOT NULL,
    extent @extschema:postgis@.geometry(Polygon, 4326) NOT NULL,
    grid_id integer,
    text_encoder_id integer NOT NULL,
    arch jsonb NOT NULL,
    standardisation jsonb NOT NULL DEFAULT '{}',
    metrics jsonb NOT NULL DEFAULT '{}',
    provenance jsonb NOT NULL DEFAULT '{}',
    CONSTRAINT model_pkey PRIMARY KEY (version),
    CONSTRAINT model_status_check CHECK (status IN ('ready', 'active')),
    CONSTRAINT model_grid_id_fkey FOREIGN KEY (grid_id) REFERENCES callipper.grid (grid_id),
    CONSTRAINT model_text_encoder_id_fkey FOREIGN KEY (text_encoder_id)
        REFERENCES callipper.text_encoder (text_encoder_id)
);
CREATE UNIQUE INDEX model_one_active_idx ON callipper.model (status) WHERE status = 'active';
COMMENT ON TABLE callipper.model IS 'model versions; immutable but for their status and metrics';
COMMENT ON COLUMN callipper.model.srid IS 'projected CRS of the location encoder, metres';
COMMENT ON COLUMN callipper.model.extent IS 'bounding box of the training POIs';
COMMENT ON COLUMN callipper.model.arch IS 'the location encoder: features and layers, in order';

CREATE TABLE callipper.location_weight (
    version integer NOT NULL,
    layer text NOT NULL,
    neuron integer NOT NULL,
    weight @extschema:vector@.vector NOT NULL,
    bias real NOT NULL,
    CONSTRAINT location_weight_pkey PRIMARY KEY (version, layer, neuron),
    CONSTRAINT location_weight_version_fkey FOREIGN KEY (version) REFERENCES callipper.model (version) ON DELETE CASCADE
);
COMMENT ON TABLE callipper.location_weight IS 'the location encoder, a row per neuron';

CREATE TABLE callipper.text_projection (
    version integer NOT NULL,
    neuron integer NOT NULL,
    weight @extschema:vector@.vector NOT NULL,
    bias real NOT NULL,
    CONSTRAINT text_projection_pkey PRIMARY KEY (version, neuron),
    CONSTRAINT text_projection_version_fkey FOREIGN KEY (version) REFERENCES callipper.model (version) ON DELETE CASCADE
);
COMMENT ON TABLE callipper.text_projection IS
    'the linear map from the sentence encoder to the shared space, a row per dimension';

CREATE TABLE callipper.context_cell (
    version integer NOT NULL,
    level integer NOT NULL,
    i integer NOT NULL,
    j integer NOT NULL,
    n real NOT NULL,
    code_sum @extschema:vector@.vector NOT NULL,
    CONSTRAINT context_cell_pkey PRIMARY KEY (version, level, i, j),
    CONSTRAINT context_cell_version_fkey FOREIGN KEY (version) REFERENCES callipper.model (version) ON DELETE CASCADE
);
COMMENT ON TABLE callipper.context_cell IS
    'what lies around: POIs and their text codes summed per cell of square lattices, 12.5 m * 2^level a side';

CREATE TABLE callipper.text_embedding (
    version integer NOT NULL,
    text_hash bigint NOT NULL GENERATED ALWAYS AS (hashtextextended(text, 0::bigint)) STORED,
    text text NOT NULL,
    emb @extschema:vector@.vector(128) NOT NULL,
    CONSTRAINT text_embedding_pkey PRIMARY KEY (text_hash, version),
    CONSTRAINT text_embedding_version_fkey FOREIGN KEY (version) REFERENCES callipper.model (version)
) PARTITION BY LIST (version);
COMMENT ON TABLE callipper.text_embedding IS 'texts that text_embed answers without the sentence encoder';
COMMENT ON COLUMN callipper.text_embedding.text IS 'lower case, single spaces';

CREATE TABLE callipper.cell_embedding (
    version integer NOT NULL,
    cell_id bigint NOT NULL,
    emb @extschema:vector@.vector(128) NOT NULL,
    CONSTRAINT cell_embedding_pkey PRIMARY KEY (cell_id, version),
    CONSTRAINT cell_embedding_version_fkey FOREIGN KEY (version) REFERENCES callipper.model (version),
    CONSTRAINT cell_embedding_cell_id_fkey FOREIGN KEY (cell_id) REFERENCES callipper.cell (cell_id)
) PARTITION BY LIST (version);
COMMENT ON TABLE callipper.cell_embedding IS 'what a model makes of each cell, taken at its centre; unit length';

CREATE TABLE callipper.point_embedding (
    version integer NOT NULL,
    point_id bigint NOT NULL,
    text text NOT NULL,
    geom @extschema:postgis@.geometry(Point, 4326) NOT NULL,
    emb @extschema:vector@.vector(128) NOT NULL,
    CONSTRAINT point_embedding_pkey PRIMARY KEY (point_id, version),
    CONSTRAINT point_embedding_version_fkey FOREIGN KEY (version) REFERENCES callipper.model (version)
) PARTITION BY LIST (version);
CREATE INDEX point_embedding_geom_idx ON callipper.point_embedding USING gist (geom);
COMMENT ON TABLE callipper.point_embedding IS 'what a model makes of each training POI''s place; unit length';
COMMENT ON COLUMN callipper.point_embedding.point_id IS 'poi.poi_id, or the id of the row in the user''s own source';
COMMENT ON COLUMN callipper.point_embedding.text IS 'what the model read'
"""

TABLES = (
    "point_embedding, cell_embedding, text_embedding, context_cell, text_projection, location_weight, model, cell, grid,"
    " text_vector, text_encoder, poi"
)


def upgrade() -> None:
    """Create the tables."""
    for statement in STATEMENTS.split(";\n"):
        op.execute(statement)


def downgrade() -> None:
    """Drop the tables, with the partitions and views that hang on them."""
    names = ", ".join(f"callipper.{name.strip()}" for name in TABLES.split(","))
    op.execute(f"DROP TABLE {names} CASCADE")
