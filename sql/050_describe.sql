-- What is it like here? The kinds of places that are there, and stand out from the rest of the city. What nobody can see there
-- is not said.

-- The POIs of each kind within 250 m of a place; of an area, those in it.
CREATE OR REPLACE FUNCTION callipper._kinds_here(version integer, place @extschema:postgis@.geometry)
RETURNS TABLE (
    kind_id integer, own_kind_id integer, pois float8, all_pois float8, nearest bigint[], distances float8[]
)
LANGUAGE plpgsql STABLE STRICT PARALLEL RESTRICTED ROWS 20 SET search_path = pg_catalog, pg_temp SET jit = off AS $$
DECLARE
    is_area constant boolean := @extschema:postgis@.ST_Dimension(place) = 2;
    reach_m constant float8 := CASE WHEN is_area THEN 0 ELSE 250 END;
    srid constant integer := (SELECT m.srid FROM callipper.model m WHERE m.version = _kinds_here.version);
    city constant @extschema:postgis@.geometry
        := (SELECT @extschema:postgis@.ST_Expand(m.extent, float8 '1') FROM callipper.model m WHERE m.version = _kinds_here.version);
    here @extschema:postgis@.geometry;
    box @extschema:postgis@.geometry;
BEGIN
    here := CASE WHEN is_area THEN callipper._area(place) ELSE callipper._as_point(place, 4326) END;
    IF is_area AND NOT here OPERATOR(@extschema:postgis@.@) city THEN  -- a projection has no numbers for the rest of the world
        here := @extschema:postgis@.ST_ClipByBox2D(here, city::@extschema:postgis@.box2d);
    END IF;
    here := @extschema:postgis@.ST_Transform(here, srid);
    box := @extschema:postgis@.ST_Expand(@extschema:postgis@.ST_Envelope(here), reach_m + 1);
    RETURN QUERY EXECUTE format($query$
        WITH near AS MATERIALIZED (
            SELECT p.kind_id, p.by_name, p.point_id,
                @extschema:postgis@.ST_Distance(@extschema:postgis@.ST_SetSRID(
                    @extschema:postgis@.ST_MakePoint(p.easting::float8, p.northing::float8), $2), $1) AS distance
            FROM callipper.%I p
            WHERE p.i BETWEEN $3 AND $4 AND p.j BETWEEN $5 AND $6
        ), inside AS (
            SELECT * FROM near WHERE distance <= $7
        )
        SELECT n.kind_id, own.kind_id, count(*)::float8, (SELECT count(*)::float8 FROM inside WHERE NOT by_name),
            (array_agg(n.point_id ORDER BY n.distance, n.point_id))[:3],
            (array_agg(n.distance ORDER BY n.distance, n.point_id))[:3]
        FROM inside n JOIN inside own ON own.point_id = n.point_id AND NOT own.by_name
        GROUP BY n.kind_id, own.kind_id
    $query$, 'point_kind_v' || version)
    USING here, srid,
        floor(@extschema:postgis@.ST_XMin(box::@extschema:postgis@.box3d) / 100)::integer,
        floor(@extschema:postgis@.ST_XMax(box::@extschema:postgis@.box3d) / 100)::integer,
        floor(@extschema:postgis@.ST_YMin(box::@extschema:postgis@.box3d) / 100)::integer,
        floor(@extschema:postgis@.ST_YMax(box::@extschema:postgis@.box3d) / 100)::integer,
        reach_m;
END
$$;
COMMENT ON FUNCTION callipper._kinds_here(integer, @extschema:postgis@.geometry) IS
    'POIs of each kind within 250 m of a place or in an area, by the kind of their category; all POIs there, the three nearest, and how far they are';

-- The kinds that stand out. A kind is said if it makes up at least twice its share in the city, and still stands out with five
-- POIs of the usual mix next to those that are there; the surer that is, the earlier it comes. What the name of a POI suggests
-- counts only where its category says nothing already: a jeweller is no goldsmith besides.
CREATE OR REPLACE FUNCTION callipper.describe(
    place @extschema:postgis@.geometry, k integer DEFAULT 10, model integer DEFAULT callipper._active_version()
) RETURNS TABLE (text text, similarity float8, percentile float8, pois integer, lift float8, because text)
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED SECURITY DEFINER COST 100000 ROWS 10
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    answering constant integer := callipper._require_model(model);
    embedding constant @extschema:vector@.vector := callipper._locate(place, answering);
    city float8;
BEGIN
    IF callipper._require_k(k) IS NULL OR embedding IS NULL THEN
        RETURN;
    ELSIF NOT callipper._has_evidence(answering) THEN
        RETURN QUERY SELECT b.text, b.similarity, b.percentile, NULL::integer, NULL::float8, NULL::text
            FROM callipper._best_texts(answering, embedding, k) b;
        RETURN;
    END IF;
    SELECT sum(t.own_pois) INTO city FROM callipper.kind t WHERE t.version = answering;
    RETURN QUERY EXECUTE format($query$
        WITH here AS MATERIALIZED (
            SELECT h.*, t.name, t.said, t.pois / $4 AS share
            FROM callipper._kinds_here($1, $2) h JOIN callipper.kind t ON t.version = $1 AND t.kind_id = h.kind_id
            WHERE h.all_pois > 0 AND t.pois > 0
        ), standing_out AS (
            SELECT h.kind_id FROM here h
            WHERE h.said AND h.kind_id = h.own_kind_id AND h.pois / h.all_pois >= 2.0::float8 * h.share
        ), counting AS (
            SELECT * FROM here h
            WHERE h.said AND (h.kind_id = h.own_kind_id OR h.own_kind_id NOT IN (SELECT s.kind_id FROM standing_out s))
        ), kinds AS (
            SELECT h.name, sum(h.pois) AS pois, sum(h.pois) / max(h.all_pois) / max(h.share) AS lift,
                (sum(h.pois) + 5.0::float8 * max(h.share)) / (max(h.all_pois) + 5.0::float8) / max(h.share) AS shrunk,
                (SELECT (array_agg(p.point_id ORDER BY c.own_kind_id <> c.kind_id, p.distance, p.point_id))[:3]
                 FROM counting c, unnest(c.nearest, c.distances) AS p(point_id, distance) WHERE c.kind_id = h.kind_id) AS nearest
            FROM counting h GROUP BY h.kind_id, h.name
        ), best AS (
            SELECT * FROM kinds WHERE lift >= 2.0::float8 AND shrunk >= 1.2::float8
            ORDER BY pois * ln(shrunk) DESC, name LIMIT $5
        )
        SELECT b.name, -(e.emb OPERATOR(@extschema:vector@.<#>) $3),
            callipper._percentile(e.emb OPERATOR(@extschema:vector@.<#>) $3, callipper._city_distances($1, e.emb)),
            b.pois::integer, b.lift, (
                SELECT string_agg(DISTINCT callipper._label(p.name, p.text), '; ')
                FROM callipper.%1$I p WHERE p.point_id = ANY (b.nearest)
            )
        FROM best b LEFT JOIN callipper.%2$I e ON e.text_hash = hashtextextended(b.name, 0) AND e.text = b.name
        ORDER BY b.pois * ln(b.shrunk) DESC, b.name
    $query$, 'point_embedding_v' || answering, 'text_embedding_v' || answering)
    USING answering, place, embedding, city, k;
END
$$;
COMMENT ON FUNCTION callipper.describe(@extschema:postgis@.geometry, integer, integer) IS
    'Up to k kinds of places that say what a place is like: SELECT * FROM describe(ST_SetSRID(ST_Point(7.4206, 43.7326), 4326)).'
    ' They are kinds of which POIs stand within 250 m, at least twice as many as is usual in the city; the most significant'
    ' first. pois is their number, lift their share there over their share in the city, because names up to three. similarity'
    ' and percentile are those of search(), for the name of the kind. Of a polygon, what is inside counts. Where no POIs are'
    ' near, or nothing stands out, nothing is said.';

-- For a version of an earlier program, which does not know the kinds of its POIs: the texts by which the place stands out most.
-- By similarity alone, every place would be like the same few words. The partition is named, so that no other version's texts are locked.
CREATE OR REPLACE FUNCTION callipper._best_texts(version integer, place @extschema:vector@.vector, k integer)
RETURNS TABLE (text text, similarity float8, percentile float8)
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    sampled integer := (SELECT count(*) FROM callipper.cell_sample s WHERE s.version = _best_texts.version);
    ones @extschema:vector@.vector;
BEGIN
    IF callipper._require_k(k) IS NULL OR place IS NULL THEN
        RETURN;
    END IF;
    IF sampled > 0 THEN
        ones := array_fill(1, ARRAY[sampled]);
        RETURN QUERY EXECUTE format('
            SELECT rated.text, -rated.distance, rated.percentile
            FROM (
                SELECT t.text, t.distance, callipper._percentile(t.distance, t.city::real[]) AS percentile,
                    @extschema:vector@.inner_product(t.city, $2) / $3 AS mean,
                    @extschema:vector@.inner_product(t.city, t.city) / $3 AS square
                FROM (
                    SELECT e.text, e.emb OPERATOR(@extschema:vector@.<#>) $1 AS distance,
                        coalesce(e.city_distances, callipper._city_distances(e.version, e.emb))::@extschema:vector@.vector AS city
                    FROM callipper.%I e WHERE e.vocabulary
                    OFFSET 0
                ) t
            ) rated
            ORDER BY rated.percentile DESC,
                CASE WHEN rated.square - rated.mean ^ 2 > 1e-7  -- less is but rounding
                    THEN (rated.mean - rated.distance) / sqrt(rated.square - rated.mean ^ 2) END DESC NULLS LAST,
                rated.text
            LIMIT $4', 'text_embedding_v' || version) USING place, ones, sampled, k;
    END IF;
    IF sampled = 0 OR NOT FOUND THEN
        RAISE EXCEPTION 'model version % was published without words for places', version
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Train a new version with: callipper-db train';
    END IF;
END
$$;
COMMENT ON FUNCTION callipper._best_texts(integer, @extschema:vector@.vector, integer) IS
    'the k texts of a version''s vocabulary by which a place stands out most among the version''s sampled cells';

-- SQL, so that it is folded to a number where both arguments are constant, and cannot be cheaper than its parts.
CREATE OR REPLACE FUNCTION callipper.text_similarity(text text, place @extschema:postgis@.geometry) RETURNS float8
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE COST 1000000 AS $$
    SELECT @extschema:vector@.inner_product(callipper.text_embed($1), callipper.loc_embed($2))
$$;
COMMENT ON FUNCTION callipper.text_similarity(text, @extschema:postgis@.geometry) IS
    'How well a text fits a place: SELECT text_similarity(''quiet park'', ST_SetSRID(ST_Point(7.4206, 43.7326), 4326)). The'
    ' cosine, from -1 to 1. Compare it between places; between texts, describe() is fairer.';
