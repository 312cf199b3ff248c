"""callipper-db: spatial-semantic search in PostGIS. The database side; nothing here imports torch."""
