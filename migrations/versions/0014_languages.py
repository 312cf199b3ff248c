"""Text encoders of any language: SentencePiece tokenizers, networks over n-grams, vectors of pieces in half the space.

Revision: 0014
"""

from __future__ import annotations

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

STATEMENTS = """
CREATE TABLE callipper.text_normal (
    text_encoder_id integer NOT NULL,
    source text NOT NULL,
    target text NOT NULL,
    CONSTRAINT text_normal_pkey PRIMARY KEY (text_encoder_id, source),
    CONSTRAINT text_normal_text_encoder_id_fkey FOREIGN KEY (text_encoder_id)
        REFERENCES callipper.text_encoder (text_encoder_id) ON DELETE CASCADE
);
COMMENT ON TABLE callipper.text_normal IS 'the characters that a SentencePiece encoder replaces before it reads a text';
ALTER TABLE callipper.text_token
    ALTER COLUMN embedding DROP NOT NULL,
    ADD COLUMN half @extschema:vector@.halfvec,
    ADD COLUMN score double precision,
    ADD CONSTRAINT text_token_vector_check CHECK (num_nonnulls(embedding, half) = 1);
COMMENT ON TABLE callipper.text_token IS 'the vocabulary of a text encoder: pieces of words and their input vectors';
COMMENT ON COLUMN callipper.text_token.half IS 'the input vector in half the space, in place of embedding';
COMMENT ON COLUMN callipper.text_token.score IS 'log probability of a SentencePiece piece; NULL for WordPiece';
ALTER TABLE callipper.text_weight DROP CONSTRAINT text_weight_part_check;
ALTER TABLE callipper.text_weight ADD CONSTRAINT text_weight_part_check CHECK (part IN (
    'query', 'key', 'value', 'attention', 'intermediate', 'output', 'projection', 'first', 'second'));
COMMENT ON TABLE callipper.text_weight IS 'the network of a text encoder, a row per neuron'
"""

DOWN = """
DROP FUNCTION IF EXISTS callipper._map_characters(text, integer);
DROP TABLE callipper.text_normal;
DELETE FROM callipper.text_norm n USING callipper.text_token t
    WHERE n.text_encoder_id = t.text_encoder_id AND t.score IS NOT NULL;
DELETE FROM callipper.text_weight w USING callipper.text_token t
    WHERE w.text_encoder_id = t.text_encoder_id AND t.score IS NOT NULL;
DELETE FROM callipper.text_token t WHERE t.score IS NOT NULL OR t.half IS NOT NULL;
ALTER TABLE callipper.text_token DROP COLUMN score, DROP COLUMN half, ALTER COLUMN embedding SET NOT NULL;
ALTER TABLE callipper.text_weight DROP CONSTRAINT text_weight_part_check;
ALTER TABLE callipper.text_weight ADD CONSTRAINT text_weight_part_check CHECK (part IN (
    'query', 'key', 'value', 'attention', 'intermediate', 'output'))
"""


def upgrade() -> None:
    """Add the table and the columns."""
    for statement in STATEMENTS.split(";\n"):
        op.execute(statement)


def downgrade() -> None:
    """Take the weights of the encoders away that an earlier program cannot run; an installation brings them back."""
    for statement in DOWN.split(";\n"):
        op.execute(statement)
