"""Benchmarks: each module has run(city) -> dict, printed as one JSON line; a speed is a ratio against a baseline beside it."""
