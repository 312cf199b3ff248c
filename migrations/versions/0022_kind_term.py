"""Words that belong to a kind and stand in no phrase; the embedding of a text counts shared words too.

Revision: 0022
"""

from __future__ import annotations

from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

STATEMENTS = """
CREATE TABLE callipper.kind_term (
    version integer NOT NULL,
    kind_id integer NOT NULL,
    term text NOT NULL,
    CONSTRAINT kind_term_pkey PRIMARY KEY (version, kind_id, term),
    CONSTRAINT kind_term_version_kind_id_fkey FOREIGN KEY (version, kind_id)
        REFERENCES callipper.kind (version, kind_id) ON DELETE CASCADE
);
COMMENT ON TABLE callipper.kind_term IS 'words of a kind that stand in no phrase, such as what is bought there';
COMMENT ON COLUMN callipper.kind_word.phrases IS 'phrases of the kind that have the word, and 1 for its terms'
"""

# init makes them anew, with other arguments.
UP = """
DROP FUNCTION IF EXISTS callipper._text_peaks(@extschema:vector@.vector, integer);
DROP FUNCTION IF EXISTS callipper._shared_words(integer, text)
"""

DOWN = """
DROP FUNCTION IF EXISTS callipper._text_peaks(@extschema:vector@.vector, integer, text);
DROP FUNCTION IF EXISTS callipper._shared_words(integer, text[], integer[]);
COMMENT ON COLUMN callipper.kind_word.phrases IS 'phrases of the kind that have the word';
DROP TABLE callipper.kind_term
"""


def upgrade() -> None:
    """Create the table, and drop what init makes with other arguments."""
    for statement in (STATEMENTS + ";\n" + UP).split(";\n"):
        op.execute(statement)


def downgrade() -> None:
    """Drop what only this revision has, or has with other arguments."""
    for statement in DOWN.split(";\n"):
        op.execute(statement)
