"""One truth about which model answers; a bound on the texts that are read; a key for what text_embed keeps in a transaction.

Revision: 0005
"""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# The functions go because init makes them anew with another signature, or no more. The views, because they depend on one.
STATEMENTS = """
CREATE TABLE callipper.change (
    one boolean NOT NULL DEFAULT true,
    transaction_id bigint NOT NULL,
    CONSTRAINT change_pkey PRIMARY KEY (one),
    CONSTRAINT change_one_check CHECK (one)
);
COMMENT ON TABLE callipper.change IS
    'one row: the transaction that last changed what is answered, by an activation, a refresh or a drop';
INSERT INTO callipper.change (transaction_id) VALUES (0);

CREATE TABLE callipper.signing_key (
    one boolean NOT NULL DEFAULT true,
    key bytea NOT NULL,
    CONSTRAINT signing_key_pkey PRIMARY KEY (one),
    CONSTRAINT signing_key_one_check CHECK (one)
);
COMMENT ON TABLE callipper.signing_key IS
    'one row: the key by which text_embed knows its own open cursors; a random number that never leaves the server';
INSERT INTO callipper.signing_key (key) VALUES (sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())));

ALTER TABLE callipper.text_encoder ADD COLUMN max_tokens integer;
ALTER TABLE callipper.text_encoder ADD CONSTRAINT text_encoder_max_tokens_check CHECK (max_tokens >= 3);
COMMENT ON COLUMN callipper.text_encoder.max_tokens IS
    'most tokens of a text that text_embed reads, the two that begin and end it included; NULL: as many as the encoder can';

DROP FUNCTION IF EXISTS callipper._replace_views(integer);
DROP FUNCTION IF EXISTS callipper._lock_views();
DROP FUNCTION IF EXISTS callipper._forget_plans();
DROP FUNCTION IF EXISTS callipper._answering_version();
DROP FUNCTION IF EXISTS callipper._usual_reach(integer);
DROP FUNCTION IF EXISTS callipper._rate_support(@extschema:postgis@.geometry);
DROP FUNCTION IF EXISTS callipper.search(text, integer, @extschema:postgis@.geometry);
DROP FUNCTION IF EXISTS callipper.search_points(text, integer, @extschema:postgis@.geometry);
DROP FUNCTION IF EXISTS callipper.search_by_examples(text[], text[], integer, @extschema:postgis@.geometry);
DROP FUNCTION IF EXISTS callipper.similar_to(
    @extschema:postgis@.geometry, integer, @extschema:postgis@.geometry, double precision
);
DROP FUNCTION IF EXISTS callipper.similar_points_to(
    @extschema:postgis@.geometry, integer, @extschema:postgis@.geometry, double precision
);
DROP FUNCTION IF EXISTS callipper.describe(@extschema:postgis@.geometry, integer)
"""

DOWN = """
DROP VIEW IF EXISTS callipper.cells CASCADE;
DROP VIEW IF EXISTS callipper.points CASCADE;
DROP FUNCTION IF EXISTS callipper.search(text, integer, @extschema:postgis@.geometry, integer);
DROP FUNCTION IF EXISTS callipper.search_points(text, integer, @extschema:postgis@.geometry, integer);
DROP FUNCTION IF EXISTS callipper.search_by_examples(text[], text[], integer, @extschema:postgis@.geometry, integer);
DROP FUNCTION IF EXISTS callipper.similar_to(
    @extschema:postgis@.geometry, integer, @extschema:postgis@.geometry, double precision, integer
);
DROP FUNCTION IF EXISTS callipper.similar_points_to(
    @extschema:postgis@.geometry, integer, @extschema:postgis@.geometry, double precision, integer
);
DROP FUNCTION IF EXISTS callipper.describe(@extschema:postgis@.geometry, integer, integer);
ALTER TABLE callipper.text_encoder DROP COLUMN max_tokens;
DROP TABLE callipper.signing_key;
DROP TABLE callipper.change
"""


def upgrade() -> None:
    """Create the tables and the column."""
    for statement in STATEMENTS.split(";\n"):
        op.execute(statement)


def downgrade() -> None:
    """Drop them, and what depends on what init makes of them."""
    for statement in DOWN.split(";\n"):
        op.execute(statement)
