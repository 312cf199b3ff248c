"""Tables of the text encoder's weights, of a sample of each model's cells, and which texts describe places.

Revision: 0002
"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# The function of revision 0001 goes: sql/ has one with another argument instead.
# A row up to a page stays in its page: a weight that had to be fetched from a TOAST table would cost ten times as much.
STATEMENTS = """
CREATE TABLE callipper.text_token (
    text_encoder_id integer NOT NULL,
    token_id integer NOT NULL,
    piece text NOT NULL,
    embedding @extschema:vector@.vector NOT NULL,
    CONSTRAINT text_token_pkey PRIMARY KEY (text_encoder_id, token_id),
    CONSTRAINT text_token_text_encoder_id_piece_key UNIQUE (text_encoder_id, piece),
    CONSTRAINT text_token_text_encoder_id_fkey FOREIGN KEY (text_encoder_id)
        REFERENCES callipper.text_encoder (text_encoder_id) ON DELETE CASCADE
) WITH (toast_tuple_target = 8160);
COMMENT ON TABLE callipper.text_token IS
    'the vocabulary of a text encoder: WordPiece pieces and what each enters the network as';
COMMENT ON COLUMN callipper.text_token.token_id IS 'row of the vocabulary, from 0';

CREATE TABLE callipper.text_position (
    text_encoder_id integer NOT NULL,
    position integer NOT NULL,
    embedding @extschema:vector@.vector NOT NULL,
    CONSTRAINT text_position_pkey PRIMARY KEY (text_encoder_id, position),
    CONSTRAINT text_position_text_encoder_id_fkey FOREIGN KEY (text_encoder_id)
        REFERENCES callipper.text_encoder (text_encoder_id) ON DELETE CASCADE
) WITH (toast_tuple_target = 8160);
COMMENT ON TABLE callipper.text_position IS 'what a text encoder adds to the token at each position (token type included)';
COMMENT ON COLUMN callipper.text_position.position IS 'place in the text, from 0';

CREATE TABLE callipper.text_weight (
    text_encoder_id integer NOT NULL,
    layer integer NOT NULL,
    part text NOT NULL,
    neuron integer NOT NULL,
    bias real NOT NULL,
    weight @extschema:vector@.vector NOT NULL,
    CONSTRAINT text_weight_pkey PRIMARY KEY (text_encoder_id, layer, part, neuron),
    CONSTRAINT text_weight_part_check CHECK (part IN ('query', 'key', 'value', 'attention', 'intermediate', 'output')),
    CONSTRAINT text_weight_text_encoder_id_fkey FOREIGN KEY (text_encoder_id)
        REFERENCES callipper.text_encoder (text_encoder_id) ON DELETE CASCADE
) WITH (toast_tuple_target = 8160);
COMMENT ON TABLE callipper.text_weight IS 'the transformer of a text encoder, a row per neuron';

CREATE TABLE callipper.text_norm (
    text_encoder_id integer NOT NULL,
    layer integer NOT NULL,
    part text NOT NULL,
    gain @extschema:vector@.vector NOT NULL,
    bias @extschema:vector@.vector NOT NULL,
    CONSTRAINT text_norm_pkey PRIMARY KEY (text_encoder_id, layer, part),
    CONSTRAINT text_norm_part_check CHECK (part IN ('embedding', 'attention', 'output')),
    CONSTRAINT text_norm_text_encoder_id_fkey FOREIGN KEY (text_encoder_id)
        REFERENCES callipper.text_encoder (text_encoder_id) ON DELETE CASCADE
) WITH (toast_tuple_target = 8160);
COMMENT ON TABLE callipper.text_norm IS 'the layer norms of a text encoder';

CREATE TABLE callipper.cell_sample (
    version integer NOT NULL,
    number integer NOT NULL,
    emb @extschema:vector@.vector(128) NOT NULL,
    CONSTRAINT cell_sample_pkey PRIMARY KEY (version, number),
    CONSTRAINT cell_sample_version_fkey FOREIGN KEY (version) REFERENCES callipper.model (version) ON DELETE CASCADE
);
COMMENT ON TABLE callipper.cell_sample IS
    'some of a model''s cells, drawn at random: what is usual in the city, for percentiles without a scan of all cells';

INSERT INTO callipper.cell_sample (version, number, emb)
SELECT c.version, c.number, c.emb FROM (
    SELECT e.version, row_number() OVER (PARTITION BY e.version ORDER BY hashint8(e.cell_id), e.cell_id) - 1 AS number, e.emb
    FROM callipper.cell_embedding e
) c WHERE c.number < 1000;

ALTER TABLE callipper.text_embedding ADD COLUMN vocabulary boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN callipper.text_embedding.vocabulary IS 'a common word for places, which describe may answer with';

ALTER TABLE callipper.text_embedding ADD COLUMN city_distances real[];
COMMENT ON COLUMN callipper.text_embedding.city_distances IS
    'of the vocabulary: minus the similarity of each cell of cell_sample, ascending; computed anew where it is NULL';
CREATE INDEX text_embedding_vocabulary_idx ON callipper.text_embedding (version) WHERE vocabulary;

DROP FUNCTION IF EXISTS callipper._find_text(text)
"""


def upgrade() -> None:
    """Create the tables."""
    for statement in STATEMENTS.split(";\n"):
        op.execute(statement)


def downgrade() -> None:
    """Drop them."""
    op.execute("ALTER TABLE callipper.text_embedding DROP COLUMN city_distances, DROP COLUMN vocabulary CASCADE")
    op.execute(
        "DROP TABLE callipper.cell_sample, callipper.text_norm, callipper.text_weight, callipper.text_position,"
        " callipper.text_token CASCADE"
    )
