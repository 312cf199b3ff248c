-- Where has the city changed, and by what? The cells that have moved most between two states, with the POIs that made it.
--
-- A cell moves a little when POIs change kilometres away. That is no change of the place, and nobody would see it there. So a cell
-- counts only if a POI within 250 m has changed, as for search() and describe(). Around one POI twenty cells move, and they all
-- say the same. So each POI that has changed is given to the cell near it that has moved most, and only such cells are listed.
CREATE OR REPLACE FUNCTION callipper.changed(
    old integer DEFAULT NULL, new integer DEFAULT NULL, k bigint DEFAULT 10, within @extschema:postgis@.geometry DEFAULT NULL,
    model integer DEFAULT callipper._active_version()
) RETURNS TABLE (
    cell_id bigint, geom @extschema:postgis@.geometry, moved float8, towards text, away text, added text, removed text, changed text
)
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED SECURITY DEFINER COST 100000 ROWS 10
SET search_path = pg_catalog, pg_temp SET jit = off AS $$
#variable_conflict use_column
DECLARE
    answering constant integer := callipper._require_model(model);
    since constant integer := callipper._require_states(answering, old, new);
    reach_m constant float8 := callipper._evidence_reach_m();
    area constant @extschema:postgis@.geometry := callipper._area(within);
    srid constant integer := (SELECT m.srid FROM callipper.model m WHERE m.version = answering);
BEGIN
    IF callipper._require_k(k) IS NULL OR within IS NOT NULL AND area IS NULL THEN
        RETURN;
    END IF;
    RETURN QUERY
        WITH site AS MATERIALIZED (
            SELECT d.*, floor(d.easting / reach_m)::integer AS i, floor(d.northing / reach_m)::integer AS j
            FROM callipper._differing_points(answering, since, $2) d
        ), cell AS MATERIALIZED (
            SELECT m.cell_id, c.geom, m.easting, m.northing, m.moved,
                floor(m.easting / reach_m)::integer AS i, floor(m.northing / reach_m)::integer AS j
            FROM callipper._moved_cells(answering, since, $2) m JOIN callipper.cell c ON c.cell_id = m.cell_id
            WHERE area IS NULL OR @extschema:postgis@.ST_Intersects(c.geom, area)
        ), near AS MATERIALIZED (
            SELECT c.cell_id, c.moved, s.point_id, s.side, s.differs, s.label, s.kinds, d.metres
            FROM site s CROSS JOIN generate_series(-1, 1) AS a(i) CROSS JOIN generate_series(-1, 1) AS b(j)
                JOIN cell c ON c.i = s.i + a.i AND c.j = s.j + b.j,
                LATERAL (SELECT point(c.easting, c.northing) <-> point(s.easting, s.northing) AS metres) d
            WHERE d.metres <= reach_m
        ), best AS (
            SELECT DISTINCT ON (n.point_id) n.cell_id FROM near n ORDER BY n.point_id, n.moved DESC, n.cell_id
        ), listed AS MATERIALIZED (
            SELECT * FROM cell c WHERE c.cell_id IN (SELECT b.cell_id FROM best b) ORDER BY c.moved DESC, c.cell_id LIMIT $3
        ), later AS MATERIALIZED (  -- what has changed after the new state, if that is not today's
            SELECT l.cell_id, u.kind_id, d.side
            FROM callipper._differing_points(answering, $2, NULL) d CROSS JOIN unnest(d.kinds) AS u(kind_id)
                JOIN listed l ON point(l.easting, l.northing) <-> point(d.easting, d.northing) <= reach_m
        ), gain AS (
            SELECT g.cell_id, g.kind_id, sum(g.gain)::integer AS gain, sum(g.later)::integer AS later FROM (
                SELECT n.cell_id, u.kind_id, n.side AS gain, 0 AS later
                FROM listed l JOIN near n ON n.cell_id = l.cell_id CROSS JOIN unnest(n.kinds) AS u(kind_id)
                UNION ALL SELECT l.cell_id, l.kind_id, 0, l.side FROM later l
            ) g GROUP BY g.cell_id, g.kind_id HAVING sum(g.gain) <> 0
        ), gains AS (
            SELECT g.cell_id, array_agg(g.kind_id) AS kinds, array_agg(g.gain) AS gains, array_agg(g.later) AS laters
            FROM gain g GROUP BY g.cell_id
        ), poi AS (  -- one that is near on both sides counts once
            SELECT DISTINCT ON (n.cell_id, n.point_id) n.* FROM listed l JOIN near n ON n.cell_id = l.cell_id
            ORDER BY n.cell_id, n.point_id, n.side DESC
        ), label AS (
            SELECT p.cell_id, p.differs, p.label, count(*) AS pois, min(p.metres) AS metres, row_number() OVER (
                    PARTITION BY p.cell_id, p.differs ORDER BY min(p.metres), p.label) AS place,
                sum(count(*)) OVER (PARTITION BY p.cell_id, p.differs) AS all_pois
            FROM poi p GROUP BY p.cell_id, p.differs, p.label
        ), reason AS (
            SELECT b.cell_id, b.differs, concat(
                    string_agg(concat(b.label, CASE WHEN b.pois > 1 THEN format(' x %s', b.pois) END), '; ' ORDER BY b.place),
                    CASE WHEN max(b.all_pois) > sum(b.pois) THEN format('; and %s more', max(b.all_pois) - sum(b.pois)) END) AS pois
            FROM label b WHERE b.place <= 3 GROUP BY b.cell_id, b.differs
        )
        SELECT l.cell_id, l.geom, l.moved, w.towards, w.away,
            (SELECT r.pois FROM reason r WHERE r.cell_id = l.cell_id AND r.differs = 'added'),
            (SELECT r.pois FROM reason r WHERE r.cell_id = l.cell_id AND r.differs = 'removed'),
            (SELECT r.pois FROM reason r WHERE r.cell_id = l.cell_id AND r.differs = 'changed')
        FROM listed l LEFT JOIN gains g ON g.cell_id = l.cell_id, LATERAL callipper._words_of_change(answering,
                @extschema:postgis@.ST_SetSRID(@extschema:postgis@.ST_MakePoint(l.easting, l.northing), srid),
                g.kinds, g.gains, g.laters) w
        ORDER BY l.moved DESC, l.cell_id;
END
$$;
COMMENT ON FUNCTION callipper.changed(integer, integer, bigint, @extschema:postgis@.geometry, integer) IS
    'The k cells that have moved most between two states of the POIs, under the same weights: SELECT * FROM changed(). old and new'
    ' are kept states, as list_states() has them: by default the last one that callipper-db refresh --keep has kept, and today.'
    ' moved is the distance (<->) between the two embeddings of the cell. towards and away are up to three kinds of places of which'
    ' there are more or fewer within 250 m, with both numbers; added, removed and changed are the POIs that made it, the nearest'
    ' first. A cell is listed if a POI within 250 m has changed, and if no other cell near that POI has moved more. A cell that'
    ' touches within counts.';

