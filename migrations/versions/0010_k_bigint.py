"""Functions that return k rows take k as bigint: a driver such as JDBC finds no function for its long otherwise.

Revision: 0010
"""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

# Two signatures of one name would make every call with a number ambiguous. init makes the functions anew, with {k} as bigint.
DROP = """
DROP FUNCTION IF EXISTS callipper.search(text, {k}, @extschema:postgis@.geometry, integer);
DROP FUNCTION IF EXISTS callipper.search_points(text, {k}, @extschema:postgis@.geometry, integer);
DROP FUNCTION IF EXISTS callipper.search_by_examples(text[], text[], {k}, @extschema:postgis@.geometry, integer,
    @extschema:postgis@.geometry[], @extschema:postgis@.geometry[]);
DROP FUNCTION IF EXISTS callipper.similar_to(
    @extschema:postgis@.geometry, {k}, @extschema:postgis@.geometry, double precision, integer);
DROP FUNCTION IF EXISTS callipper.similar_points_to(
    @extschema:postgis@.geometry, {k}, @extschema:postgis@.geometry, double precision, integer);
DROP FUNCTION IF EXISTS callipper.describe(@extschema:postgis@.geometry, {k}, integer);
DROP FUNCTION IF EXISTS callipper._best_texts(integer, @extschema:vector@.vector, {k});
DROP FUNCTION IF EXISTS callipper._standing_out(integer, @extschema:postgis@.geometry, {k});
DROP FUNCTION IF EXISTS callipper._cells_by_evidence(
    integer, @extschema:vector@.vector, text, {k}, @extschema:postgis@.geometry);
DROP FUNCTION IF EXISTS callipper._best_points(
    integer, @extschema:vector@.vector, {k}, @extschema:postgis@.geometry, bigint[]);
DROP FUNCTION IF EXISTS callipper._best_cells(
    integer, @extschema:vector@.vector, {k}, @extschema:postgis@.geometry, bigint[]);
DROP FUNCTION IF EXISTS callipper._cells_in_city(integer, @extschema:vector@.vector, {k}, bigint[]);
DROP FUNCTION IF EXISTS callipper._cells_in_area(
    integer, @extschema:vector@.vector, {k}, @extschema:postgis@.geometry, bigint[]);
DROP FUNCTION IF EXISTS callipper._require_k({k})
"""


def upgrade() -> None:
    """Drop the functions that take k as integer."""
    _drop("integer")


def downgrade() -> None:
    """Drop those that take it as bigint."""
    _drop("bigint")


def _drop(k: str) -> None:
    for statement in DROP.format(k=k).split(";\n"):
        op.execute(statement)
