"""The oldest supported versions of the server and its extensions. A test compares them with scripts/install-postgres.sh."""

from __future__ import annotations

MINIMUM_POSTGRES = 15
MINIMUM = {"postgis": (3, 3), "vector": (0, 7)}
# Of pgvector: an older one can overflow a buffer in parallel HNSW builds (CVE-2026-3172).
SAFE_PARALLEL_BUILD = (0, 8, 3)
# Released version -> the newest revision that it knew. The extension gets an update script for each. See docs/releasing.md.
RELEASES: dict[str, str] = {"0.1.0": "0022"}
