-- A POI whose key is no integer gets a number made from the key: the first 64 bits of its MD5. So points join back to their
-- table: ... FROM points p JOIN my_table t ON p.point_id = callipper.point_id(t.id::text)
CREATE OR REPLACE FUNCTION callipper.point_id(key text) RETURNS bigint
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT pg_catalog.concat('x', pg_catalog."left"(pg_catalog.md5(key), 16))::pg_catalog."bit"(64)::pg_catalog.int8
$$;

COMMENT ON FUNCTION callipper.point_id(text) IS
    'The point_id of a row of your own source by its key, where that is no integer: a uuid, text, numeric or composite key, as'
    ' text. points p JOIN my_table t ON p.point_id = point_id(t.id::text)';
