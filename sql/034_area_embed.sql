-- An area as one vector.

-- The mean of the cells whose middle is inside, weighted by their support, so cells without POIs count little. An area that
-- contains no middle of a cell, or is outside the grid, is embedded at its centroid.
CREATE OR REPLACE FUNCTION callipper.area_embed(area @extschema:postgis@.geometry) RETURNS @extschema:vector@.vector
LANGUAGE plpgsql STABLE STRICT PARALLEL RESTRICTED SECURITY DEFINER COST 100000 SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    here constant @extschema:postgis@.geometry := callipper._area(area);
    mean @extschema:vector@.vector;
BEGIN
    EXECUTE format(
        'SELECT @extschema:vector@.sum(@extschema:vector@.vector_mul(e.emb,'
        '    array_fill(coalesce(m.support, 1) + 1e-6::real, ARRAY[@extschema:vector@.vector_dims(e.emb)])::@extschema:vector@.vector)'
        '    ORDER BY m.cell_id)'  -- in any order, the last digits would differ from plan to plan
        ' FROM callipper_map.cell m JOIN callipper.cell_embedding e ON e.version = %s AND e.cell_id = m.cell_id'
        ' WHERE m.geom OPERATOR(@extschema:postgis@.&&) $1 AND @extschema:postgis@.ST_Intersects($1,'
        '    @extschema:postgis@.ST_SetSRID(@extschema:postgis@.ST_MakePoint(m.lon, m.lat), 4326))',
        callipper._require_model(NULL)
    ) INTO mean USING here;
    RETURN coalesce(@extschema:vector@.l2_normalize(mean), callipper.loc_embed(area));
END
$$;
COMMENT ON FUNCTION callipper.area_embed(@extschema:postgis@.geometry) IS
    'Embedding of an area by the active model: the mean of its cells, weighted by their support, unit length: SELECT'
    ' area_embed(ST_MakeEnvelope(7.41, 43.72, 7.43, 43.74, 4326)). An area without the middle of a cell is asked as loc_embed() asks.';
