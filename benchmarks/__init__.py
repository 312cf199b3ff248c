"""Benchmarks. Each module has run(city) -> dict, printed as one JSON line. A speed is a ratio to a baseline of the same run."""
