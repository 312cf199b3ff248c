"""The schema `callipper` as SQLAlchemy tables: declarations for alembic and for readers, without behaviour."""

from __future__ import annotations

from geoalchemy2 import Geometry
from pgvector.sqlalchemy import HALFVEC, VECTOR
from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Computed,
    DateTime,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import INT8MULTIRANGE, JSONB, REAL

SCHEMA = "callipper"
MAP_SCHEMA = "callipper_map"  # what people and their tools see
PEAK_DIMENSIONS = 128  # of an embedding's first half, which a text is compared with: where kinds of places peak
CONTEXT_DIMENSIONS = 128  # of its second half, the location encoder's: what a neighbourhood is like
DIMENSIONS = PEAK_DIMENSIONS + CONTEXT_DIMENSIONS  # of every embedding that users meet

metadata = MetaData(
    schema=SCHEMA,
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "ck": "%(table_name)s_%(constraint_name)s_check",
    },
)


def _geometry(kind: str) -> Geometry:
    return Geometry(kind, srid=4326, spatial_index=False)


# Names in other languages: OpenStreetMap's name:fr, Overture's names. sql/042_evidence.sql looks for them by the same path.
OTHER_NAMES = '$.keyvalue() ? (@.key starts with "name:" || @.key == "names").value'
HAS_OTHER_NAMES = "strpos(attributes::text, '\"name:') > 0 OR attributes ? 'names'"

poi = Table(
    "poi",
    metadata,
    Column("poi_id", BigInteger, Identity(always=True), primary_key=True),
    Column("source", Text, nullable=False),
    Column("source_id", Text, nullable=False),
    Column("name", Text),
    Column("category", Text),
    Column("category_group", Text),
    Column("description", Text, comment="the user's own text; where NULL the training template is used"),
    Column("geom", _geometry("POINT"), nullable=False),
    Column("attributes", JSONB, nullable=False, server_default=text("'{}'")),
    UniqueConstraint("source", "source_id"),
    Index("poi_geom_idx", "geom", postgresql_using="gist"),
    Index(
        "poi_other_names_idx",
        text(f"jsonb_to_tsvector('simple', jsonb_path_query_array(attributes, '{OTHER_NAMES}'), '[\"string\"]')"),
        postgresql_using="gin",
        postgresql_where=text(HAS_OTHER_NAMES),
    ),
    comment="points of interest, one row per (source, source_id)",
)

poi_change = Table(
    "poi_change",
    metadata,
    Column("change_id", BigInteger, Identity(always=True), primary_key=True),
    Column(
        "poi_ids",
        INT8MULTIRANGE,
        nullable=False,
        comment="POIs inserted, updated or deleted: poi_id <@ poi_ids; all when the table was truncated",
    ),
    comment="statements that changed callipper.poi and that no refresh has seen yet; triggers write it",
)

change = Table(
    "change",
    metadata,
    Column("one", Boolean, primary_key=True, server_default=text("true")),
    Column("transaction_id", BigInteger, nullable=False),
    CheckConstraint("one", name="one"),
    comment="one row: the transaction that last changed the answers, by an activation, a refresh or a drop",
)

signing_key = Table(
    "signing_key",
    metadata,
    Column("one", Boolean, primary_key=True, server_default=text("true")),
    Column("key", LargeBinary, nullable=False),
    CheckConstraint("one", name="one"),
    comment="one row: the key with which text_embed signs its open cursors; a random number that never leaves the server",
)

text_encoder = Table(
    "text_encoder",
    metadata,
    Column("text_encoder_id", Integer, Identity(always=True), primary_key=True),
    Column("name", Text, nullable=False),
    Column("revision", Text, nullable=False, comment="sha256 of the weights file"),
    Column("dim", Integer, nullable=False),
    Column("arch", JSONB, nullable=False, server_default=text("'{}'")),
    Column(
        "max_tokens",
        Integer,
        CheckConstraint("max_tokens >= 3", name="max_tokens"),
        comment="most tokens of a text that text_embed reads, with its first and its last special token; NULL:"
        " the encoder's own limit",
    ),
    UniqueConstraint("name", "revision"),
    comment="frozen sentence encoders that models were trained with",
)

text_vector = Table(
    "text_vector",
    metadata,
    Column("text_encoder_id", Integer, ForeignKey(text_encoder.c.text_encoder_id), nullable=False),
    Column("text_hash", BigInteger, Computed("hashtextextended(text, 0::bigint)", persisted=True), nullable=False),
    Column("text", Text, nullable=False),
    Column("vec", VECTOR, nullable=False),
    PrimaryKeyConstraint("text_encoder_id", "text_hash"),
    comment="the sentence encoder's vector of each distinct text, so that no text is encoded twice",
)


def _encoder_key() -> Column[int]:
    return Column(
        "text_encoder_id", Integer, ForeignKey(text_encoder.c.text_encoder_id, ondelete="CASCADE"), nullable=False
    )


text_token = Table(
    "text_token",
    metadata,
    _encoder_key(),
    Column("token_id", Integer, nullable=False, comment="row of the vocabulary, from 0"),
    Column("piece", Text, nullable=False),
    Column("embedding", VECTOR),
    Column("half", HALFVEC, comment="the input vector in half the space, in place of embedding"),
    Column("score", Float(53), comment="log probability of a SentencePiece piece; NULL for WordPiece"),
    PrimaryKeyConstraint("text_encoder_id", "token_id"),
    UniqueConstraint("text_encoder_id", "piece"),
    CheckConstraint("num_nonnulls(embedding, half) = 1", name="vector"),
    comment="the vocabulary of a text encoder: pieces of words and their input vectors",
)

text_normal = Table(
    "text_normal",
    metadata,
    _encoder_key(),
    Column("source", Text, nullable=False),
    Column("target", Text, nullable=False),
    PrimaryKeyConstraint("text_encoder_id", "source"),
    comment="the characters that a SentencePiece encoder replaces before it reads a text",
)

text_position = Table(
    "text_position",
    metadata,
    _encoder_key(),
    Column("position", Integer, nullable=False, comment="place in the text, from 0"),
    Column("embedding", VECTOR, nullable=False),
    PrimaryKeyConstraint("text_encoder_id", "position"),
    comment="the vector that a text encoder adds to the token at each position (token type included)",
)

text_weight = Table(
    "text_weight",
    metadata,
    _encoder_key(),
    Column("layer", Integer, nullable=False),
    Column("part", Text, nullable=False),
    Column("neuron", Integer, nullable=False),
    Column("bias", REAL, nullable=False),
    Column("weight", VECTOR, nullable=False),
    PrimaryKeyConstraint("text_encoder_id", "layer", "part", "neuron"),
    CheckConstraint(
        "part IN ('query', 'key', 'value', 'attention', 'intermediate', 'output', 'projection', 'first', 'second')",
        name="part",
    ),
    comment="the network of a text encoder, a row per neuron",
)

text_norm = Table(
    "text_norm",
    metadata,
    _encoder_key(),
    Column("layer", Integer, nullable=False),
    Column("part", Text, nullable=False),
    Column("gain", VECTOR, nullable=False),
    Column("bias", VECTOR, nullable=False),
    PrimaryKeyConstraint("text_encoder_id", "layer", "part"),
    CheckConstraint("part IN ('embedding', 'attention', 'output')", name="part"),
    comment="the layer norms of a text encoder",
)

model = Table(
    "model",
    metadata,
    Column("version", Integer, Identity(always=True), primary_key=True),
    Column("status", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("activated_at", DateTime(timezone=True)),
    Column("srid", Integer, nullable=False, comment="projected CRS of the location encoder, metres"),
    Column("origin_easting", Float(53), nullable=False),
    Column("origin_northing", Float(53), nullable=False),
    Column(
        "extent",
        _geometry("POLYGON"),
        nullable=False,
        comment="bounding box of the training POIs and of those that refresh has added",
    ),
    Column("grid_id", Integer, ForeignKey("callipper.grid.grid_id")),
    Column("text_encoder_id", Integer, ForeignKey(text_encoder.c.text_encoder_id), nullable=False),
    Column("arch", JSONB, nullable=False, comment="the location encoder: features and layers, in order"),
    Column("standardisation", JSONB, nullable=False, server_default=text("'{}'")),
    Column("metrics", JSONB, nullable=False, server_default=text("'{}'")),
    Column("provenance", JSONB, nullable=False, server_default=text("'{}'")),
    Column(
        "follows_changes",
        Boolean,
        nullable=False,
        server_default=text("false"),
        comment="whether poi_change lists all POIs that differ from those of this version; true for one version at most",
    ),
    CheckConstraint("status IN ('ready', 'active')", name="status"),
    Index("model_one_active_idx", "status", unique=True, postgresql_where=text("status = 'active'")),
    comment="model versions; only their status, metrics, extent and provenance.refreshed ever change",
)

location_weight = Table(
    "location_weight",
    metadata,
    Column("version", Integer, ForeignKey(model.c.version, ondelete="CASCADE"), nullable=False),
    Column("layer", Text, nullable=False),
    Column("neuron", Integer, nullable=False),
    Column("weight", VECTOR, nullable=False),
    Column("bias", REAL, nullable=False),
    PrimaryKeyConstraint("version", "layer", "neuron"),
    comment="the location encoder, a row per neuron",
)

text_projection = Table(
    "text_projection",
    metadata,
    Column("version", Integer, ForeignKey(model.c.version, ondelete="CASCADE"), nullable=False),
    Column("neuron", Integer, nullable=False),
    Column("weight", VECTOR, nullable=False),
    Column("bias", REAL, nullable=False),
    PrimaryKeyConstraint("version", "neuron"),
    comment="the linear map from the sentence encoder to the shared space, a row per dimension",
)

context_cell = Table(
    "context_cell",
    metadata,
    Column("version", Integer, ForeignKey(model.c.version, ondelete="CASCADE"), nullable=False),
    Column("level", Integer, nullable=False),
    Column("i", Integer, nullable=False),
    Column("j", Integer, nullable=False),
    Column("n", REAL, nullable=False),
    Column("code_sum", VECTOR, nullable=False),
    PrimaryKeyConstraint("version", "level", "i", "j"),
    comment="the context of places: POIs and their text codes, summed per cell of square lattices with"
    " sides of 12.5 m * 2^level",
)

text_embedding = Table(
    "text_embedding",
    metadata,
    Column("version", Integer, ForeignKey(model.c.version), nullable=False),
    Column("text_hash", BigInteger, Computed("hashtextextended(text, 0::bigint)", persisted=True), nullable=False),
    Column("text", Text, nullable=False, comment="lower case, single spaces"),
    Column("emb", VECTOR(DIMENSIONS), nullable=False),
    Column(
        "vocabulary",
        Boolean,
        nullable=False,
        server_default=text("false"),
        comment="a common word for places, which describe may return",
    ),
    Column(
        "city_distances",
        ARRAY(REAL),
        comment="for a word of the vocabulary: minus its similarity to each cell of cell_sample, ascending;"
        " NULL: computed when needed",
    ),
    PrimaryKeyConstraint("text_hash", "version"),
    Index("text_embedding_vocabulary_idx", "version", postgresql_where=text("vocabulary")),
    comment="texts that text_embed answers without the sentence encoder",
    postgresql_partition_by="LIST (version)",
)

grid = Table(
    "grid",
    metadata,
    Column("grid_id", Integer, Identity(always=True), primary_key=True),
    Column("kind", Text, nullable=False),
    Column("size_m", Float(53), nullable=False),
    Column("srid", Integer, nullable=False),
    CheckConstraint("kind IN ('square', 'hexagon', 'h3')", name="kind"),
    CheckConstraint("size_m > 0", name="size_m"),
    UniqueConstraint("kind", "size_m", "srid"),
    comment="regular grids, anchored at the origin of their CRS, or H3 cells; models with the same grid share its cells",
)

cell = Table(
    "cell",
    metadata,
    Column("cell_id", BigInteger, Identity(always=True), primary_key=True),
    Column("grid_id", Integer, ForeignKey(grid.c.grid_id, ondelete="CASCADE"), nullable=False),
    Column("i", Integer, nullable=False),
    Column("j", Integer, nullable=False),
    Column("geom", _geometry("POLYGON"), nullable=False),
    UniqueConstraint("grid_id", "i", "j"),
    Index("cell_geom_idx", "geom", postgresql_using="gist"),
    comment="the cells of the grids",
)

cell_embedding = Table(
    "cell_embedding",
    metadata,
    Column("version", Integer, ForeignKey(model.c.version), nullable=False),
    Column("cell_id", BigInteger, ForeignKey(cell.c.cell_id), nullable=False),
    Column("emb", VECTOR(DIMENSIONS), nullable=False),
    PrimaryKeyConstraint("cell_id", "version"),
    comment="a version's embedding of each cell, at its centre; unit length",
    postgresql_partition_by="LIST (version)",
)

cell_sample = Table(
    "cell_sample",
    metadata,
    Column("version", Integer, ForeignKey(model.c.version, ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("emb", VECTOR(DIMENSIONS), nullable=False),
    PrimaryKeyConstraint("version", "number"),
    comment="random cells of a version, from which percentiles are estimated without a scan of all cells",
)

point_embedding = Table(
    "point_embedding",
    metadata,
    Column("version", Integer, ForeignKey(model.c.version), nullable=False),
    Column("point_id", BigInteger, nullable=False, comment="poi.poi_id, or the id of the row in the user's own source"),
    Column("text", Text, nullable=False, comment="what the model read"),
    Column("geom", _geometry("POINT"), nullable=False),
    Column("emb", VECTOR(DIMENSIONS), nullable=False),
    Column(
        "name", Text, nullable=False, server_default=text("''"), comment="the POI's name in the source, '' for none"
    ),
    Column(
        "trained",
        Boolean,
        nullable=False,
        server_default=text("true"),
        comment="whether the model was trained with this POI as it is here; false if refresh has added or changed it",
    ),
    PrimaryKeyConstraint("point_id", "version"),
    Index("point_embedding_geom_idx", "geom", postgresql_using="gist"),
    Index("point_embedding_name_idx", text("to_tsvector('simple'::regconfig, name)"), postgresql_using="gin"),
    comment="a version's embedding of the place of each training POI; unit length",
    postgresql_partition_by="LIST (version)",
)

kind = Table(
    "kind",
    metadata,
    Column("version", Integer, ForeignKey(model.c.version, ondelete="CASCADE"), nullable=False),
    Column("kind_id", Integer, nullable=False, autoincrement=False),
    Column("name", Text, nullable=False, comment='in everyday words: "bicycle shop"'),
    Column("said", Boolean, nullable=False, comment="whether describe may return it"),
    Column(
        "pois",
        Integer,
        nullable=False,
        server_default=text("0"),
        comment="POIs of this kind, by their category or by their name",
    ),
    Column(
        "own_pois",
        Integer,
        nullable=False,
        server_default=text("0"),
        comment="POIs whose category is this kind; each POI counts for one kind",
    ),
    Column(
        "sure_pois",
        REAL,
        nullable=False,
        server_default=text("0"),
        comment="POIs of this kind as describe counts them: a POI whose name is only similar, and each name of"
        " stops, count half",
    ),
    Column(
        "landmark",
        Boolean,
        nullable=False,
        server_default=text("false"),
        comment="whether places are known for it; describe counts each of its POIs twice",
    ),
    PrimaryKeyConstraint("version", "kind_id"),
    UniqueConstraint("version", "name"),
    comment="kinds of places among the POIs of a model version",
)

kind_phrase = Table(
    "kind_phrase",
    metadata,
    Column("version", Integer, nullable=False),
    Column("kind_id", Integer, nullable=False),
    Column("phrase", Text, nullable=False),
    Column("vec", VECTOR, nullable=False, comment="the sentence encoder's vector of the phrase, unit length"),
    PrimaryKeyConstraint("version", "kind_id", "phrase"),
    ForeignKeyConstraint(
        ["version", "kind_id"],
        [kind.c.version, kind.c.kind_id],
        name="kind_phrase_version_kind_id_fkey",
        ondelete="CASCADE",
    ),
    comment="the names of a kind and the phrases by which people ask for it",
)

kind_name = Table(
    "kind_name",
    metadata,
    Column("version", Integer, nullable=False),
    Column("language", Text, nullable=False, comment="ISO 639-1 code"),
    Column("kind_id", Integer, nullable=False),
    Column("name", Text, nullable=False),
    PrimaryKeyConstraint("version", "language", "kind_id"),
    ForeignKeyConstraint(
        ["version", "kind_id"],
        [kind.c.version, kind.c.kind_id],
        name="kind_name_version_kind_id_fkey",
        ondelete="CASCADE",
    ),
    comment="names of kinds in other languages than English, which describe returns",
)

kind_peak = Table(
    "kind_peak",
    metadata,
    Column("version", Integer, nullable=False),
    Column("kind_id", Integer, nullable=False),
    Column(
        "threshold",
        REAL,
        nullable=False,
        comment="the kind's POIs near a place, divided by a power of all POIs there, count from this value up",
    ),
    Column("gain", REAL, nullable=False, comment="factor on the part above the threshold"),
    Column("direction", VECTOR(PEAK_DIMENSIONS), nullable=False, comment="unit length"),
    PrimaryKeyConstraint("version", "kind_id"),
    ForeignKeyConstraint(
        ["version", "kind_id"],
        [kind.c.version, kind.c.kind_id],
        name="kind_peak_version_kind_id_fkey",
        ondelete="CASCADE",
    ),
    comment="how each kind of place enters the first half of an embedding; a kind that is newer than the training does not",
)

point_kind = Table(
    "point_kind",
    metadata,
    Column("version", Integer, ForeignKey(model.c.version), nullable=False),
    Column("point_id", BigInteger, nullable=False),
    Column("kind_id", Integer, nullable=False),
    Column("easting", Float(53), nullable=False, comment="metres in the CRS of the model"),
    Column("northing", Float(53), nullable=False, comment="metres in the CRS of the model"),
    Column(
        "i",
        Integer,
        Computed("floor(easting / 100.0::float8)::integer", persisted=True),
        nullable=False,
        comment="column of the square of 100 m",
    ),
    Column(
        "j",
        Integer,
        Computed("floor(northing / 100.0::float8)::integer", persisted=True),
        nullable=False,
        comment="row of the square of 100 m",
    ),
    Column(
        "basis",
        SmallInteger,
        nullable=False,
        comment="why it counts: 0 its category, 1 its name says the kind, 2 is similar to it, 3 hints at it, 4"
        " a stop is named after one",
    ),
    PrimaryKeyConstraint("point_id", "kind_id", "version"),
    Index("point_kind_kind_id_idx", "kind_id"),
    Index("point_kind_i_j_idx", "i", "j"),
    comment="the kinds of each training POI, and its position",
    postgresql_partition_by="LIST (version)",
)

point_name = Table(
    "point_name",
    metadata,
    Column("version", Integer, ForeignKey(model.c.version), nullable=False),
    Column("point_id", BigInteger, nullable=False),
    Column("vec", HALFVEC, nullable=False, comment="unit length"),
    PrimaryKeyConstraint("point_id", "version"),
    comment="the sentence encoder's vector of name and category of each training POI with a name of its own",
    postgresql_partition_by="LIST (version)",
)

poi_density = Table(
    "poi_density",
    metadata,
    Column("version", Integer, ForeignKey(model.c.version, ondelete="CASCADE"), nullable=False),
    Column("i", Integer, nullable=False),
    Column("j", Integer, nullable=False),
    Column("pois", REAL, nullable=False),
    PrimaryKeyConstraint("version", "i", "j"),
    comment="POIs within 250 m of the middle of each square of 100 m that has POIs",
)

cell_summary = Table(
    "cell_summary",
    metadata,
    Column("version", Integer, ForeignKey(model.c.version), nullable=False),
    Column("cell_id", BigInteger, nullable=False),
    Column("cluster", Integer, nullable=False),
    Column("color", Text, nullable=False),
    Column("top_texts", Text),
    Column("support", REAL, nullable=False),
    Column("poi_count", Integer),
    PrimaryKeyConstraint("cell_id", "version"),
    comment="the columns of callipper_map.cell for each cell of a version",
    postgresql_partition_by="LIST (version)",
)

cell_cluster = Table(
    "cell_cluster",
    metadata,
    Column("version", Integer, ForeignKey(model.c.version, ondelete="CASCADE"), nullable=False),
    Column("cluster", Integer, nullable=False),
    Column("label", Text, nullable=False),
    Column("centre", VECTOR, nullable=False),
    PrimaryKeyConstraint("version", "cluster"),
    comment="groups of cells with similar embeddings, by k-means when the version was published",
)

color_axis = Table(
    "color_axis",
    metadata,
    Column("version", Integer, ForeignKey(model.c.version, ondelete="CASCADE"), nullable=False),
    Column("axis", Integer, nullable=False),
    Column("weight", VECTOR, nullable=False),
    Column("bias", REAL, nullable=False),
    PrimaryKeyConstraint("version", "axis"),
    comment="red, green and blue of a version's cells: a linear map of the embedding, clipped to 0 to 1",
)

map_cell = Table(
    "cell",
    metadata,
    Column(
        "cell_id",
        BigInteger,
        primary_key=True,
        autoincrement=False,
        comment="key of the cell, the same in callipper.cells",
    ),
    Column("geom", _geometry("POLYGON"), nullable=False, comment="the cell in longitude and latitude"),
    Column("lon", Float(53), nullable=False, comment="longitude of the middle of the cell, degrees"),
    Column("lat", Float(53), nullable=False, comment="latitude of the middle of the cell, degrees"),
    Column("cluster", Integer, comment="number of the cell's group of similar cells, from 0, the largest group"),
    Column("cluster_label", Text, comment="up to three kinds of places that stand out in the cells of the group"),
    Column(
        "color",
        Text,
        comment="a colour as #rrggbb: cells with similar embeddings have similar colours (three principal components)",
    ),
    Column(
        "top_texts",
        Text,
        comment="up to three kinds of places that stand out within 250 m of the middle, as describe returns"
        " them; NULL where none does",
    ),
    Column(
        "support", REAL, comment="how well POIs support the embedding of the middle, 0 to 1, as loc_support returns it"
    ),
    Column("poi_count", Integer, comment="POIs within 250 m of the middle"),
    Column("model_version", Integer, nullable=False, comment="model version of these values"),
    Index("cell_geom_idx", "geom", postgresql_using="gist"),
    comment="grid cells of the active model",
    schema=MAP_SCHEMA,
)

map_place = Table(
    "place",
    metadata,
    Column(
        "place_id",
        BigInteger,
        primary_key=True,
        autoincrement=False,
        comment="key of the POI: poi_id of callipper.poi, or that of your own table",
    ),
    Column("geom", _geometry("POINT"), nullable=False, comment="position in longitude and latitude"),
    Column("lon", Float(53), nullable=False, comment="longitude, degrees"),
    Column("lat", Float(53), nullable=False, comment="latitude, degrees"),
    Column("name", Text, comment="its name; NULL if it has none"),
    Column(
        "category",
        Text,
        comment="its category in callipper.poi; NULL where the model was trained on another table",
    ),
    Column("kind", Text, comment="the kind of place, as describe names it"),
    Column("text", Text, nullable=False, comment="the text that the model has read"),
    Column("model_version", Integer, nullable=False, comment="model version that was trained on it"),
    Index("place_geom_idx", "geom", postgresql_using="gist"),
    comment="points of interest (POIs) that the active model was trained on",
    schema=MAP_SCHEMA,
)

# The tables with one partition per model version.
PARTITIONED = tuple(
    table.name for table in metadata.sorted_tables if table.dialect_options["postgresql"].get("partition_by")
)
