-- What the evidence is compared with: how many POIs there are of each kind, and around each square of the city, and how much of
-- the city has a station, a stadium and the like near.

-- How far search() and describe() look for POIs. callipper_trainer/standing_out.py has the same number.
CREATE OR REPLACE FUNCTION callipper._evidence_reach_m() RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT 250.0::pg_catalog.float8
$$;
COMMENT ON FUNCTION callipper._evidence_reach_m() IS 'metres around a place within which POIs are evidence for an answer';

-- How far describe() looks from a place: 250 m, and in a park or on a heath, where fewer than five POIs are so near, twice or four
-- times as far. here is in the version's own CRS.
CREATE OR REPLACE FUNCTION callipper._describe_reach_m(version integer, here @extschema:postgis@.geometry) RETURNS float8
LANGUAGE plpgsql STABLE STRICT PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp SET jit = off AS $$
DECLARE
    least_pois constant integer := 5;
    near constant float8 := callipper._evidence_reach_m();
    fifth float8;
BEGIN
    EXECUTE format($query$
        SELECT d.m FROM (
            SELECT point(p.easting, p.northing) <-> point(@extschema:postgis@.ST_X($1), @extschema:postgis@.ST_Y($1)) AS m
            FROM callipper.%I p
            WHERE p.basis = 0 AND p.i BETWEEN $2 - $4 AND $2 + $4 AND p.j BETWEEN $3 - $4 AND $3 + $4
        ) d ORDER BY d.m OFFSET $5 - 1 LIMIT 1
    $query$, 'point_kind_v' || version) INTO fifth USING here, floor(@extschema:postgis@.ST_X(here) / 100)::integer,
        floor(@extschema:postgis@.ST_Y(here) / 100)::integer, ceil(2 * near / 100)::integer, least_pois;
    RETURN CASE WHEN fifth <= near THEN near WHEN fifth <= 2 * near THEN 2 * near ELSE 4 * near END;
END
$$;
COMMENT ON FUNCTION callipper._describe_reach_m(integer, @extschema:postgis@.geometry) IS
    'metres around a place within which describe() counts POIs: 250, or 500 or 1,000 where fewer than five are nearer';

-- The squares of 100 m within 250 m of the middle of one, each with the share of its area that is within.
CREATE OR REPLACE FUNCTION callipper._squares_around() RETURNS TABLE (i integer, j integer, share float8)
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE ROWS 37 SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    reach_m constant float8 := callipper._evidence_reach_m();
    most constant integer := ceil((reach_m + 50) / 100);
BEGIN
    RETURN QUERY
        SELECT s.i, s.j, s.share FROM (
            SELECT a.i, b.j,
                avg(CASE WHEN (a.i * 100 + x.m) ^ 2 + (b.j * 100 + y.m) ^ 2 <= reach_m ^ 2 THEN 1.0 ELSE 0.0 END)::float8 AS share
            FROM generate_series(-most, most) AS a(i), generate_series(-most, most) AS b(j),
                generate_series(-45, 45, 10) AS x(m), generate_series(-45, 45, 10) AS y(m)
            GROUP BY a.i, b.j
        ) AS s WHERE s.share > 0;
END
$$;
COMMENT ON FUNCTION callipper._squares_around() IS
    'squares of 100 m within 250 m of the middle of one: their offsets, and the share of each that is within';

-- Counts what search() and describe() compare with: the POIs of each kind, the POIs around each square that holds some, and the
-- share of these squares that have a prominent kind near. The trainer calls it when it publishes or refreshes a version. A fixed
-- plan: partitions are named, and nothing is joined whose size the planner could not know.
CREATE OR REPLACE FUNCTION callipper._count_evidence(version integer) RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format($query$
        WITH counted AS MATERIALIZED (
            SELECT p.kind_id, count(*) FILTER (WHERE p.basis < 4) AS pois, count(*) FILTER (WHERE p.basis = 0) AS own,
                count(*) FILTER (WHERE p.basis = 1) AS said, count(*) FILTER (WHERE p.basis = 2) AS alike
            FROM callipper.%1$I p GROUP BY p.kind_id
        ), stops AS MATERIALIZED (
            SELECT p.kind_id, count(DISTINCT e.name) AS names
            FROM callipper.%1$I p JOIN callipper.%2$I e ON e.point_id = p.point_id WHERE p.basis = 4 GROUP BY p.kind_id
        )
        UPDATE callipper.kind k SET pois = c.pois, own_pois = c.own_pois, sure_pois = c.sure_pois FROM (
            SELECT k.kind_id, coalesce(c.pois, 0) AS pois, coalesce(c.own, 0) AS own_pois,
                (CASE WHEN c.own > 0 THEN c.own
                    ELSE coalesce(c.said, 0) + CASE WHEN k.landmark THEN 0 ELSE coalesce(c.alike, 0) END / 2.0
                        + coalesce(s.names, 0) / 2.0
                    END)::real AS sure_pois
            FROM callipper.kind k LEFT JOIN counted c ON c.kind_id = k.kind_id LEFT JOIN stops s ON s.kind_id = k.kind_id
            WHERE k.version = $1
        ) AS c WHERE k.version = $1 AND k.kind_id = c.kind_id
            AND (k.pois, k.own_pois, k.sure_pois) IS DISTINCT FROM (c.pois, c.own_pois, c.sure_pois)
    $query$, 'point_kind_v' || version, 'point_embedding_v' || version) USING version;
    DELETE FROM callipper.poi_density d WHERE d.version = _count_evidence.version;
    -- A square holds POIs if it is among those that give it some.
    EXECUTE format($query$
        INSERT INTO callipper.poi_density (version, i, j, pois)
        SELECT $1, s.i + a.i, s.j + a.j, sum(s.pois * a.share) FROM (
            SELECT p.i, p.j, count(*)::float8 AS pois FROM callipper.%1$I p WHERE p.basis = 0 GROUP BY p.i, p.j
        ) s CROSS JOIN callipper._squares_around() a
        GROUP BY 2, 3 HAVING bool_or(a.i = 0 AND a.j = 0)
    $query$, 'point_kind_v' || version) USING version;
    -- A POI is near a square if at least half of the POI's own square lies within 250 m of that square's middle.
    EXECUTE format($query$
        WITH near AS MATERIALIZED (
            SELECT s.kind_id, count(DISTINCT (d.i, d.j)) AS squares FROM (
                SELECT DISTINCT p.kind_id, p.i, p.j FROM callipper.%1$I p
                    JOIN callipper.kind k ON k.version = $1 AND k.kind_id = p.kind_id AND k.prominent
                WHERE p.basis = 0 OR k.own_pois = 0 AND p.basis IN (1, 4)
            ) s CROSS JOIN callipper._squares_around() a
                JOIN callipper.poi_density d ON d.version = $1 AND d.i = s.i + a.i AND d.j = s.j + a.j
            WHERE a.share >= 0.5 GROUP BY s.kind_id
        ), share AS (
            SELECT k.kind_id, (n.squares / (SELECT count(*) FROM callipper.poi_density d WHERE d.version = $1)::float8)::real AS area
            FROM callipper.kind k LEFT JOIN near n ON n.kind_id = k.kind_id WHERE k.version = $1
        )
        UPDATE callipper.kind k SET area_share = s.area FROM share s
        WHERE k.version = $1 AND k.kind_id = s.kind_id AND k.area_share IS DISTINCT FROM s.area
    $query$, 'point_kind_v' || version) USING version;
END
$$;
COMMENT ON FUNCTION callipper._count_evidence(integer) IS 'count the POIs of each kind and around each square of a version, and the squares that have a prominent kind near';
