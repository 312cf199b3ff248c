"""Words of the phrases by which people ask for a kind; the parts of a town take turns by its size.

Revision: 0021
"""

from __future__ import annotations

from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

STATEMENTS = """
CREATE TABLE callipper.kind_word (
    version integer NOT NULL,
    kind_id integer NOT NULL,
    word text NOT NULL,
    phrases integer NOT NULL,
    CONSTRAINT kind_word_pkey PRIMARY KEY (version, word, kind_id),
    CONSTRAINT kind_word_version_kind_id_fkey FOREIGN KEY (version, kind_id)
        REFERENCES callipper.kind (version, kind_id) ON DELETE CASCADE
);
CREATE INDEX kind_word_version_kind_id_idx ON callipper.kind_word (version, kind_id);
COMMENT ON TABLE callipper.kind_word IS 'the words, cut to their stems, of the phrases by which people ask for a kind';
COMMENT ON COLUMN callipper.kind_word.phrases IS 'phrases of the kind that have the word'
"""

# init makes them anew, with one more argument.
UP = """
DROP FUNCTION IF EXISTS callipper._in_turn(bigint[], float8[], float8[], integer[], float8[], float8, bigint);
DROP FUNCTION IF EXISTS callipper._kinds_asked(integer, @extschema:vector@.vector)
"""

DOWN = """
DROP FUNCTION IF EXISTS callipper._in_turn(bigint[], float8[], float8[], integer[], float8[], float8, float8, bigint);
DROP FUNCTION IF EXISTS callipper._kinds_asked(integer, @extschema:vector@.vector, text);
DROP FUNCTION IF EXISTS callipper._shared_words(integer, text);
DROP FUNCTION IF EXISTS callipper._count_words(integer);
DROP FUNCTION IF EXISTS callipper._spoken(integer);
DROP FUNCTION IF EXISTS callipper._lexemes(text, text[]);
DROP TABLE callipper.kind_word
"""


def upgrade() -> None:
    """Create the table, and drop what init makes with one more argument."""
    for statement in (STATEMENTS + ";\n" + UP).split(";\n"):
        op.execute(statement)


def downgrade() -> None:
    """Drop what only this revision has, or has with one more argument."""
    for statement in DOWN.split(";\n"):
        op.execute(statement)
