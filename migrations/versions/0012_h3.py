"""Grids of H3 cells; comments of tables and columns in plain English.

Revision: 0012
"""

from __future__ import annotations

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

STATEMENTS = """
ALTER TABLE callipper.grid DROP CONSTRAINT grid_kind_check;
ALTER TABLE callipper.grid ADD CONSTRAINT grid_kind_check CHECK (kind IN ('square', 'hexagon', 'h3'));
COMMENT ON TABLE callipper.grid IS
    'regular grids, anchored at the origin of their CRS, or H3 cells; models with the same grid share its cells';
COMMENT ON TABLE callipper.change IS
    'one row: the transaction that last changed the answers, by an activation, a refresh or a drop';
COMMENT ON TABLE callipper.signing_key IS
    'one row: the key with which text_embed signs its open cursors; a random number that never leaves the server';
COMMENT ON COLUMN callipper.text_encoder.max_tokens IS
    'most tokens of a text that text_embed reads, with its first and its last special token; NULL: the encoder''s own limit';
COMMENT ON TABLE callipper.text_vector IS
    'the sentence encoder''s vector of each distinct text, so that no text is encoded twice';
COMMENT ON TABLE callipper.text_token IS 'the vocabulary of a text encoder: WordPiece pieces and their input vectors';
COMMENT ON TABLE callipper.text_position IS
    'the vector that a text encoder adds to the token at each position (token type included)';
COMMENT ON TABLE callipper.model IS 'model versions; only their status, metrics, extent and provenance.refreshed ever change';
COMMENT ON COLUMN callipper.model.follows_changes IS
    'whether poi_change lists all POIs that differ from those of this version; true for one version at most';
COMMENT ON TABLE callipper.context_cell IS
    'the context of places: POIs and their text codes, summed per cell of square lattices with sides of 12.5 m * 2^level';
COMMENT ON COLUMN callipper.text_embedding.vocabulary IS 'a common word for places, which describe may return';
COMMENT ON COLUMN callipper.text_embedding.city_distances IS
    'for a word of the vocabulary: minus its similarity to each cell of cell_sample, ascending; NULL: computed when needed';
COMMENT ON TABLE callipper.cell_embedding IS 'a version''s embedding of each cell, at its centre; unit length';
COMMENT ON TABLE callipper.cell_sample IS
    'random cells of a version, from which percentiles are estimated without a scan of all cells';
COMMENT ON TABLE callipper.point_embedding IS 'a version''s embedding of the place of each training POI; unit length';
COMMENT ON COLUMN callipper.point_embedding.trained IS
    'whether the model was trained with this POI as it is here; false if refresh has added or changed it';
COMMENT ON TABLE callipper.kind IS 'kinds of places among the POIs of a model version';
COMMENT ON COLUMN callipper.kind.name IS 'in everyday words: "bicycle shop"';
COMMENT ON COLUMN callipper.kind.said IS 'whether describe may return it';
COMMENT ON COLUMN callipper.kind.sure_pois IS
    'POIs of this kind as describe counts them: a POI whose name is only similar, and each name of stops, count half';
COMMENT ON COLUMN callipper.kind.landmark IS 'whether places are known for it; describe counts each of its POIs twice';
COMMENT ON TABLE callipper.kind_peak IS
    'how each kind of place enters the first half of an embedding; a kind that is newer than the training does not';
COMMENT ON COLUMN callipper.kind_peak.threshold IS
    'the kind''s POIs near a place, divided by a power of all POIs there, count from this value up';
COMMENT ON COLUMN callipper.kind_peak.gain IS 'factor on the part above the threshold';
COMMENT ON TABLE callipper.point_kind IS 'the kinds of each training POI, and its position';
COMMENT ON COLUMN callipper.point_kind.basis IS
    'why it counts: 0 its category, 1 its name says the kind, 2 is similar to it, 3 hints at it, 4 a stop is named after one';
COMMENT ON TABLE callipper.cell_summary IS 'the columns of callipper_map.cell for each cell of a version';
COMMENT ON TABLE callipper.cell_cluster IS
    'groups of cells with similar embeddings, by k-means when the version was published';
COMMENT ON TABLE callipper.color_axis IS
    'red, green and blue of a version''s cells: a linear map of the embedding, clipped to 0 to 1'
"""


# Somebody may have dropped the tables of callipper_map; init makes them again after the migrations, with these comments.
OF_THE_MAP = """
DO $$
BEGIN
    IF to_regclass('callipper_map.cell') IS NULL OR to_regclass('callipper_map.place') IS NULL THEN
        RETURN;
    END IF;
    COMMENT ON COLUMN callipper_map.cell.cluster IS 'number of the cell''s group of similar cells, from 0, the largest group';
    COMMENT ON COLUMN callipper_map.cell.color IS
        'a colour as #rrggbb: cells with similar embeddings have similar colours (three principal components)';
    COMMENT ON COLUMN callipper_map.cell.top_texts IS
        'up to three kinds of places that stand out within 250 m of the middle, as describe returns them; NULL where none does';
    COMMENT ON COLUMN callipper_map.cell.support IS
        'how well POIs support the embedding of the middle, 0 to 1, as loc_support returns it';
    COMMENT ON COLUMN callipper_map.cell.model_version IS 'model version of these values';
    COMMENT ON COLUMN callipper_map.place.kind IS 'the kind of place, as describe names it';
    COMMENT ON COLUMN callipper_map.place.text IS 'the text that the model has read';
    COMMENT ON COLUMN callipper_map.place.geom IS 'position in longitude and latitude';
    COMMENT ON COLUMN callipper_map.place.name IS 'its name; NULL if it has none';
END
$$
"""


def upgrade() -> None:
    """Allow H3 cells, and say the same in other words."""
    for statement in STATEMENTS.split(";\n"):
        op.execute(statement)
    op.execute(OF_THE_MAP)


def downgrade() -> None:
    """Refuse where a grid has H3 cells. The comments are true of earlier schemas too."""
    op.execute("DROP VIEW IF EXISTS callipper_map.cell_h3")
    op.execute("ALTER TABLE callipper.grid DROP CONSTRAINT grid_kind_check")
    op.execute("ALTER TABLE callipper.grid ADD CONSTRAINT grid_kind_check CHECK (kind IN ('square', 'hexagon'))")
