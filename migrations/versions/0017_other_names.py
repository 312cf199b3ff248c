"""An index of the names in other languages that POIs have in their attributes.

Revision: 0017
"""

from __future__ import annotations

from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

OTHER_NAMES = '$.keyvalue() ? (@.key starts with "name:" || @.key == "names").value'


def upgrade() -> None:
    """Make the index."""
    names = f"jsonb_path_query_array(attributes, '{OTHER_NAMES}')"
    op.execute(
        "CREATE INDEX poi_other_names_idx ON callipper.poi"
        f" USING gin (jsonb_to_tsvector('simple', {names}, '[\"string\"]'))"
        # As text, since the path takes three times as long, and most POIs of a load have no other name.
        " WHERE strpos(attributes::text, '\"name:') > 0 OR attributes ? 'names'"
    )


def downgrade() -> None:
    """Drop the index."""
    op.execute("DROP INDEX callipper.poi_other_names_idx")
