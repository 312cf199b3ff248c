"""The oldest versions of what runs on the server. scripts/install-postgres.sh has them too; a test compares the two."""

from __future__ import annotations

MINIMUM_POSTGRES = 15
MINIMUM = {"postgis": (3, 3), "vector": (0, 7)}
SAFE_PARALLEL_BUILD = (
    0,
    8,
    3,
)  # of pgvector: an older one can overflow a buffer in parallel HNSW builds (CVE-2026-3172)
