"""POIs from a source in the database to the batches of the training."""
