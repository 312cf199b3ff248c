-- The views for users. They show the active model: the planner folds _active_version() to a number, which leaves one partition,
-- so that ORDER BY emb <-> ... uses its index. Every cell_id has a cell, but LEFT JOIN lets the planner skip the join when geom
-- is not needed. The column lists never change, so that users' own views on these stay valid.
CREATE OR REPLACE VIEW callipper.cells AS
SELECT e.cell_id, c.geom, e.emb
FROM callipper.cell_embedding e LEFT JOIN callipper.cell c ON c.cell_id = e.cell_id
WHERE e.version = callipper._active_version();
COMMENT ON VIEW callipper.cells IS 'grid cells with their embedding by the active model (unit length, 256 dimensions)';

CREATE OR REPLACE VIEW callipper.points AS
SELECT e.point_id, coalesce(p.name, nullif(e.name, '')) AS name,
    CASE WHEN callipper._points_are_pois(callipper._active_version()) THEN p.category ELSE e.text END AS category,
    e.text, e.geom, e.emb
FROM callipper.point_embedding e
LEFT JOIN callipper.poi p ON p.poi_id = e.point_id AND callipper._points_are_pois(callipper._active_version())
WHERE e.version = callipper._active_version();
COMMENT ON VIEW callipper.points IS 'training POIs with the embedding of their place by the active model';

-- 010_model.sql has reset _newest_version() and _newest_change(); set them to the present state.
DO $$
BEGIN
    LOCK TABLE callipper.model IN SHARE ROW EXCLUSIVE MODE;
    PERFORM callipper._set_newest(
        (SELECT m.version FROM callipper.model m WHERE m.status = 'active'), (SELECT c.transaction_id FROM callipper.change c)
    );
END
$$;
