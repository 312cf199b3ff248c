"""The schema `callipper` as SQLAlchemy tables: declarations for alembic and for readers, without behaviour."""

from __future__ import annotations

from typing import Any

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


def _column(name: str, *parts: Any, default: str | None = None, **options: Any) -> Column[Any]:
    """A column that is never NULL; default: in SQL."""
    return Column(name, *parts, nullable=False, server_default=None if default is None else text(default), **options)


# Names in other languages: OpenStreetMap's name:fr, Overture's names. sql/042_evidence.sql looks for them by the same path.
OTHER_NAMES = '$.keyvalue() ? (@.key starts with "name:" || @.key == "names").value'
HAS_OTHER_NAMES = "strpos(attributes::text, '\"name:') > 0 OR attributes ? 'names'"

poi = Table(
    "poi",
    metadata,
    Column("poi_id", BigInteger, Identity(always=True), primary_key=True),
    _column("source", Text),
    _column("source_id", Text),
    Column("name", Text),
    Column("category", Text),
    Column("category_group", Text),
    Column("description", Text, comment="the user's own text; where NULL the training template is used"),
    _column("geom", _geometry("POINT")),
    _column("attributes", JSONB, default="'{}'"),
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
    _column(
        "poi_ids",
        INT8MULTIRANGE,
        comment="POIs inserted, updated or deleted: poi_id <@ poi_ids; all when the table was truncated",
    ),
    comment="statements that changed callipper.poi and that no refresh has seen yet; triggers write it",
)

change = Table(
    "change",
    metadata,
    Column("one", Boolean, primary_key=True, server_default=text("true")),
    _column("transaction_id", BigInteger),
    CheckConstraint("one", name="one"),
    comment="one row: the transaction that last changed the answers, by an activation, a refresh or a drop",
)

signing_key = Table(
    "signing_key",
    metadata,
    Column("one", Boolean, primary_key=True, server_default=text("true")),
    _column("key", LargeBinary),
    CheckConstraint("one", name="one"),
    comment="one row: the key with which text_embed signs its open cursors; a random number that never leaves the server",
)

text_encoder = Table(
    "text_encoder",
    metadata,
    Column("text_encoder_id", Integer, Identity(always=True), primary_key=True),
    _column("name", Text),
    _column("revision", Text, comment="sha256 of the weights file"),
    _column("dim", Integer),
    _column("arch", JSONB, default="'{}'"),
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
    _column("text_encoder_id", Integer, ForeignKey(text_encoder.c.text_encoder_id)),
    _column("text_hash", BigInteger, Computed("hashtextextended(text, 0::bigint)", persisted=True)),
    _column("text", Text),
    _column("vec", VECTOR),
    PrimaryKeyConstraint("text_encoder_id", "text_hash"),
    comment="the sentence encoder's vector of each distinct text, so that no text is encoded twice",
)


def _encoder_key() -> Column[int]:
    return _column("text_encoder_id", Integer, ForeignKey(text_encoder.c.text_encoder_id, ondelete="CASCADE"))


text_token = Table(
    "text_token",
    metadata,
    _encoder_key(),
    _column("token_id", Integer, comment="row of the vocabulary, from 0"),
    _column("piece", Text),
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
    _column("source", Text),
    _column("target", Text),
    PrimaryKeyConstraint("text_encoder_id", "source"),
    comment="the characters that a SentencePiece encoder replaces before it reads a text",
)

text_position = Table(
    "text_position",
    metadata,
    _encoder_key(),
    _column("position", Integer, comment="place in the text, from 0"),
    _column("embedding", VECTOR),
    PrimaryKeyConstraint("text_encoder_id", "position"),
    comment="the vector that a text encoder adds to the token at each position (token type included)",
)

text_weight = Table(
    "text_weight",
    metadata,
    _encoder_key(),
    _column("layer", Integer),
    _column("part", Text),
    _column("neuron", Integer),
    _column("bias", REAL),
    _column("weight", VECTOR),
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
    _column("layer", Integer),
    _column("part", Text),
    _column("gain", VECTOR),
    _column("bias", VECTOR),
    PrimaryKeyConstraint("text_encoder_id", "layer", "part"),
    CheckConstraint("part IN ('embedding', 'attention', 'output')", name="part"),
    comment="the layer norms of a text encoder",
)

model = Table(
    "model",
    metadata,
    Column("version", Integer, Identity(always=True), primary_key=True),
    _column("status", Text),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("activated_at", DateTime(timezone=True)),
    _column("srid", Integer, comment="projected CRS of the location encoder, metres"),
    _column("origin_easting", Float(53)),
    _column("origin_northing", Float(53)),
    _column(
        "extent", _geometry("POLYGON"), comment="bounding box of the training POIs and of those that refresh has added"
    ),
    Column("grid_id", Integer, ForeignKey("callipper.grid.grid_id")),
    _column("text_encoder_id", Integer, ForeignKey(text_encoder.c.text_encoder_id)),
    _column("arch", JSONB, comment="the location encoder: features and layers, in order"),
    _column("standardisation", JSONB, default="'{}'"),
    _column("metrics", JSONB, default="'{}'"),
    _column("provenance", JSONB, default="'{}'"),
    _column(
        "follows_changes",
        Boolean,
        default="false",
        comment="whether poi_change lists all POIs that differ from those of this version; true for one version at most",
    ),
    CheckConstraint("status IN ('ready', 'active')", name="status"),
    Index("model_one_active_idx", "status", unique=True, postgresql_where=text("status = 'active'")),
    comment="model versions; only their status, metrics, extent and provenance.refreshed ever change",
)

location_weight = Table(
    "location_weight",
    metadata,
    _column("version", Integer, ForeignKey(model.c.version, ondelete="CASCADE")),
    _column("layer", Text),
    _column("neuron", Integer),
    _column("weight", VECTOR),
    _column("bias", REAL),
    PrimaryKeyConstraint("version", "layer", "neuron"),
    comment="the location encoder, a row per neuron",
)

text_projection = Table(
    "text_projection",
    metadata,
    _column("version", Integer, ForeignKey(model.c.version, ondelete="CASCADE")),
    _column("neuron", Integer),
    _column("weight", VECTOR),
    _column("bias", REAL),
    PrimaryKeyConstraint("version", "neuron"),
    comment="the linear map from the sentence encoder to the shared space, a row per dimension",
)

context_cell = Table(
    "context_cell",
    metadata,
    _column("version", Integer, ForeignKey(model.c.version, ondelete="CASCADE")),
    _column("level", Integer),
    _column("i", Integer),
    _column("j", Integer),
    _column("n", REAL),
    _column("code_sum", VECTOR),
    PrimaryKeyConstraint("version", "level", "i", "j"),
    comment="the context of places: POIs and their text codes, summed per cell of square lattices with"
    " sides of 12.5 m * 2^level",
)

text_embedding = Table(
    "text_embedding",
    metadata,
    _column("version", Integer, ForeignKey(model.c.version)),
    _column("text_hash", BigInteger, Computed("hashtextextended(text, 0::bigint)", persisted=True)),
    _column("text", Text, comment="lower case, single spaces"),
    _column("emb", VECTOR(DIMENSIONS)),
    _column("vocabulary", Boolean, default="false", comment="a common word for places, which describe may return"),
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
    _column("kind", Text),
    _column("size_m", Float(53)),
    _column("srid", Integer),
    CheckConstraint("kind IN ('square', 'hexagon', 'h3')", name="kind"),
    CheckConstraint("size_m > 0", name="size_m"),
    UniqueConstraint("kind", "size_m", "srid"),
    comment="regular grids, anchored at the origin of their CRS, or H3 cells; models with the same grid share its cells",
)

cell = Table(
    "cell",
    metadata,
    Column("cell_id", BigInteger, Identity(always=True), primary_key=True),
    _column("grid_id", Integer, ForeignKey(grid.c.grid_id, ondelete="CASCADE")),
    _column("i", Integer),
    _column("j", Integer),
    _column("geom", _geometry("POLYGON")),
    UniqueConstraint("grid_id", "i", "j"),
    Index("cell_geom_idx", "geom", postgresql_using="gist"),
    comment="the cells of the grids",
)

cell_embedding = Table(
    "cell_embedding",
    metadata,
    _column("version", Integer, ForeignKey(model.c.version)),
    _column("cell_id", BigInteger, ForeignKey(cell.c.cell_id)),
    _column("emb", VECTOR(DIMENSIONS)),
    PrimaryKeyConstraint("cell_id", "version"),
    comment="a version's embedding of each cell, at its centre; unit length",
    postgresql_partition_by="LIST (version)",
)

cell_sample = Table(
    "cell_sample",
    metadata,
    _column("version", Integer, ForeignKey(model.c.version, ondelete="CASCADE")),
    _column("number", Integer),
    _column("emb", VECTOR(DIMENSIONS)),
    PrimaryKeyConstraint("version", "number"),
    comment="random cells of a version, from which percentiles are estimated without a scan of all cells",
)

point_embedding = Table(
    "point_embedding",
    metadata,
    _column("version", Integer, ForeignKey(model.c.version)),
    _column("point_id", BigInteger, comment="poi.poi_id, or the id of the row in the user's own source"),
    _column("text", Text, comment="what the model read"),
    _column("geom", _geometry("POINT")),
    _column("emb", VECTOR(DIMENSIONS)),
    _column("name", Text, default="''", comment="the POI's name in the source, '' for none"),
    _column(
        "trained",
        Boolean,
        default="true",
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
    _column("version", Integer, ForeignKey(model.c.version, ondelete="CASCADE")),
    _column("kind_id", Integer, autoincrement=False),
    _column("name", Text, comment='in everyday words: "bicycle shop"'),
    _column("said", Boolean, comment="whether describe may return it"),
    _column("pois", Integer, default="0", comment="POIs of this kind, by their category or by their name"),
    _column("own_pois", Integer, default="0", comment="POIs whose category is this kind; each POI counts for one kind"),
    _column(
        "sure_pois",
        REAL,
        default="0",
        comment="POIs of this kind as describe counts them: a POI whose name is only similar, and each name of"
        " stops, count half",
    ),
    _column(
        "landmark",
        Boolean,
        default="false",
        comment="whether a place is known by it; names that are only similar to a landmark's do not count",
    ),
    _column(
        "prominent",
        Boolean,
        default="false",
        comment="whether a quarter is known by one of them, so that describe names it where few places have one near",
    ),
    Column(
        "area_share",
        REAL,
        comment="of the squares of 100 m that hold POIs, the share from which one is within 250 m; prominent kinds alone",
    ),
    PrimaryKeyConstraint("version", "kind_id"),
    UniqueConstraint("version", "name"),
    comment="kinds of places among the POIs of a model version",
)


def _kind_key(name: str) -> ForeignKeyConstraint:
    columns = ["version", "kind_id"]
    return ForeignKeyConstraint(columns, [kind.c.version, kind.c.kind_id], name=name, ondelete="CASCADE")


kind_phrase = Table(
    "kind_phrase",
    metadata,
    _column("version", Integer),
    _column("kind_id", Integer),
    _column("phrase", Text),
    _column("vec", VECTOR, comment="the sentence encoder's vector of the phrase, unit length"),
    PrimaryKeyConstraint("version", "kind_id", "phrase"),
    _kind_key("kind_phrase_version_kind_id_fkey"),
    comment="the names of a kind and the phrases by which people ask for it",
)

kind_term = Table(
    "kind_term",
    metadata,
    _column("version", Integer),
    _column("kind_id", Integer),
    _column("term", Text),
    PrimaryKeyConstraint("version", "kind_id", "term"),
    _kind_key("kind_term_version_kind_id_fkey"),
    comment="words of a kind that stand in no phrase, such as what is bought there",
)

kind_word = Table(
    "kind_word",
    metadata,
    _column("version", Integer),
    _column("kind_id", Integer),
    _column("word", Text),
    _column("phrases", Integer, comment="phrases of the kind that have the word, and 1 for its terms"),
    PrimaryKeyConstraint("version", "word", "kind_id"),
    _kind_key("kind_word_version_kind_id_fkey"),
    Index("kind_word_version_kind_id_idx", "version", "kind_id"),
    comment="the words, cut to their stems, of the phrases by which people ask for a kind",
)

kind_name = Table(
    "kind_name",
    metadata,
    _column("version", Integer),
    _column("language", Text, comment="ISO 639-1 code"),
    _column("kind_id", Integer),
    _column("name", Text),
    PrimaryKeyConstraint("version", "language", "kind_id"),
    _kind_key("kind_name_version_kind_id_fkey"),
    comment="names of kinds in other languages than English, which describe returns",
)

kind_peak = Table(
    "kind_peak",
    metadata,
    _column("version", Integer),
    _column("kind_id", Integer),
    _column(
        "threshold",
        REAL,
        comment="the kind's POIs near a place, divided by a power of all POIs there, count from this value up",
    ),
    _column("gain", REAL, comment="factor on the part above the threshold"),
    _column("direction", VECTOR(PEAK_DIMENSIONS), comment="unit length"),
    PrimaryKeyConstraint("version", "kind_id"),
    _kind_key("kind_peak_version_kind_id_fkey"),
    comment="how each kind of place enters the first half of an embedding; a kind that is newer than the training does not",
)

point_kind = Table(
    "point_kind",
    metadata,
    _column("version", Integer, ForeignKey(model.c.version)),
    _column("point_id", BigInteger),
    _column("kind_id", Integer),
    _column("easting", Float(53), comment="metres in the CRS of the model"),
    _column("northing", Float(53), comment="metres in the CRS of the model"),
    _column(
        "i",
        Integer,
        Computed("floor(easting / 100.0::float8)::integer", persisted=True),
        comment="column of the square of 100 m",
    ),
    _column(
        "j",
        Integer,
        Computed("floor(northing / 100.0::float8)::integer", persisted=True),
        comment="row of the square of 100 m",
    ),
    _column(
        "basis",
        SmallInteger,
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
    _column("version", Integer, ForeignKey(model.c.version)),
    _column("point_id", BigInteger),
    _column("vec", HALFVEC, comment="unit length"),
    PrimaryKeyConstraint("point_id", "version"),
    comment="the sentence encoder's vector of name and category of each training POI with a name of its own",
    postgresql_partition_by="LIST (version)",
)

poi_density = Table(
    "poi_density",
    metadata,
    _column("version", Integer, ForeignKey(model.c.version, ondelete="CASCADE")),
    _column("i", Integer),
    _column("j", Integer),
    _column("pois", REAL),
    PrimaryKeyConstraint("version", "i", "j"),
    comment="POIs within 250 m of the middle of each square of 100 m that has POIs",
)

cell_summary = Table(
    "cell_summary",
    metadata,
    _column("version", Integer, ForeignKey(model.c.version)),
    _column("cell_id", BigInteger),
    _column("cluster", Integer),
    _column("color", Text),
    Column("top_texts", Text),
    _column("support", REAL),
    Column("poi_count", Integer),
    PrimaryKeyConstraint("cell_id", "version"),
    comment="the columns of callipper_map.cell for each cell of a version",
    postgresql_partition_by="LIST (version)",
)

cell_cluster = Table(
    "cell_cluster",
    metadata,
    _column("version", Integer, ForeignKey(model.c.version, ondelete="CASCADE")),
    _column("cluster", Integer),
    _column("label", Text),
    _column("centre", VECTOR),
    PrimaryKeyConstraint("version", "cluster"),
    comment="groups of cells with similar embeddings, by k-means when the version was published",
)

color_axis = Table(
    "color_axis",
    metadata,
    _column("version", Integer, ForeignKey(model.c.version, ondelete="CASCADE")),
    _column("axis", Integer),
    _column("weight", VECTOR),
    _column("bias", REAL),
    PrimaryKeyConstraint("version", "axis"),
    comment="red, green and blue of a version's cells: a linear map of the embedding, clipped to 0 to 1",
)

kept_state = Table(
    "kept_state",
    metadata,
    _column("version", Integer, ForeignKey(model.c.version, ondelete="CASCADE")),
    _column("state", Integer, autoincrement=False),
    Column(
        "replaced_at",
        DateTime(timezone=True),
        nullable=False,
        server_default=func.now(),
        comment="when the refresh began that replaced it",
    ),
    PrimaryKeyConstraint("version", "state"),
    comment="states of the POIs that a refresh was asked to keep, the earliest first",
)


def _state_key(name: str) -> ForeignKeyConstraint:
    columns = ["version", "state"]
    return ForeignKeyConstraint(columns, [kept_state.c.version, kept_state.c.state], name=name, ondelete="CASCADE")


kept_point = Table(
    "kept_point",
    metadata,
    _column("version", Integer),
    _column("state", Integer),
    _column("point_id", BigInteger),
    Column("text", Text, comment="what the model read; NULL if there was no such POI"),
    Column("name", Text),
    Column("geom", _geometry("POINT")),
    Column("kinds", ARRAY(Integer), comment="kind_id of each kind that it counted for"),
    PrimaryKeyConstraint("version", "state", "point_id"),
    _state_key("kept_point_version_state_fkey"),
    comment="POIs as they were in a kept state; only those that are otherwise in the next state, or now",
)

kept_cell = Table(
    "kept_cell",
    metadata,
    _column("version", Integer),
    _column("state", Integer),
    _column("cell_id", BigInteger),
    _column("easting", Float(53), comment="of the middle of the cell, metres in the CRS of the model"),
    _column("northing", Float(53), comment="of the middle of the cell, metres in the CRS of the model"),
    _column("emb", VECTOR(DIMENSIONS)),
    PrimaryKeyConstraint("version", "state", "cell_id"),
    _state_key("kept_cell_version_state_fkey"),
    comment="embeddings of cells as they were in a kept state; only those within 250 m of a POI in kept_point",
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
    _column("geom", _geometry("POLYGON"), comment="the cell in longitude and latitude"),
    _column("lon", Float(53), comment="longitude of the middle of the cell, degrees"),
    _column("lat", Float(53), comment="latitude of the middle of the cell, degrees"),
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
    _column("model_version", Integer, comment="model version of these values"),
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
    _column("geom", _geometry("POINT"), comment="position in longitude and latitude"),
    _column("lon", Float(53), comment="longitude, degrees"),
    _column("lat", Float(53), comment="latitude, degrees"),
    Column("name", Text, comment="its name; NULL if it has none"),
    Column(
        "category", Text, comment="its category in callipper.poi; NULL where the model was trained on another table"
    ),
    Column("kind", Text, comment="the kind of place, as describe names it"),
    _column("text", Text, comment="the text that the model has read"),
    _column("model_version", Integer, comment="model version that was trained on it"),
    Index("place_geom_idx", "geom", postgresql_using="gist"),
    comment="points of interest (POIs) that the active model was trained on",
    schema=MAP_SCHEMA,
)

# The tables with one partition per model version.
PARTITIONED = tuple(
    table.name for table in metadata.sorted_tables if table.dialect_options["postgresql"].get("partition_by")
)
