"""What refresh needs: the POIs that have changed, which model they are noted for, and which POIs a model was trained with.

Revision: 0003
"""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# A primary key, so that the table can be deleted from where it is replicated logically.
STATEMENTS = """
CREATE TABLE callipper.poi_change (
    change_id bigint GENERATED ALWAYS AS IDENTITY,
    poi_ids int8multirange NOT NULL,
    CONSTRAINT poi_change_pkey PRIMARY KEY (change_id)
);
COMMENT ON TABLE callipper.poi_change IS
    'statements that changed callipper.poi and that no refresh has seen yet; triggers write it';
COMMENT ON COLUMN callipper.poi_change.poi_ids IS
    'POIs inserted, updated or deleted: poi_id <@ poi_ids; all when the table was truncated';

ALTER TABLE callipper.model ADD COLUMN follows_changes boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN callipper.model.follows_changes IS
    'whether poi_change names all POIs that differ from what this version holds; of one version at most';
COMMENT ON COLUMN callipper.model.extent IS 'bounding box of the training POIs and of those that refresh has added';
COMMENT ON TABLE callipper.model IS
    'model versions; immutable but for their status, their metrics and what refresh renews: extent, provenance.refreshed';

ALTER TABLE callipper.point_embedding ADD COLUMN trained boolean NOT NULL DEFAULT true;
COMMENT ON COLUMN callipper.point_embedding.trained IS
    'whether the model was trained with this POI as it stands here; false where refresh has added or changed it'
"""

DOWN = """
ALTER TABLE callipper.point_embedding DROP COLUMN trained;
ALTER TABLE callipper.model DROP COLUMN follows_changes;
COMMENT ON COLUMN callipper.model.extent IS 'bounding box of the training POIs';
COMMENT ON TABLE callipper.model IS 'model versions; immutable but for their status and metrics';
DROP TRIGGER IF EXISTS note_insert ON callipper.poi;
DROP TRIGGER IF EXISTS note_update ON callipper.poi;
DROP TRIGGER IF EXISTS note_delete ON callipper.poi;
DROP TRIGGER IF EXISTS note_truncate ON callipper.poi;
DROP TABLE callipper.poi_change
"""


def upgrade() -> None:
    """Create the table and the columns."""
    for statement in STATEMENTS.split(";\n"):
        op.execute(statement)


def downgrade() -> None:
    """Drop them, and the triggers, which would write to what is gone."""
    for statement in DOWN.split(";\n"):
        op.execute(statement)
