"""Bring a model up to date with its POIs, without training."""
