"""How good a model is: probes, floors and retrieval."""
