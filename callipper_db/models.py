"""Model versions: list, show, compare, activate, drop, prune."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from callipper_db import db
from callipper_db.errors import DatabaseFailed, ModelActive, NoActiveModel, UnknownModel
from callipper_db.figures import SPLITS
from callipper_db.h3_cells import resolution_of
from callipper_db.tables import PARTITIONED

COLUMNS = "m.version, m.status, m.created_at, m.activated_at, m.srid, e.name AS text_encoder, m.metrics, m.provenance"


def active_version(connection: db.Connection) -> int:
    """The active version. Raises NoActiveModel."""
    (version,) = connection.one("SELECT callipper._active_version()")
    if not version:  # 0 says that there is none
        raise NoActiveModel
    return int(version)


def list_models(dsn: str) -> list[dict[str, Any]]:
    """Every version, newest first."""
    with db.session(dsn) as connection, connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(
            f"SELECT {COLUMNS} FROM callipper.model m JOIN callipper.text_encoder e USING (text_encoder_id)"
            " ORDER BY m.version DESC"
        ).fetchall()


# A reader sees the active version alone.
COUNTS = (
    "(SELECT count(*) FROM callipper.cell_embedding c WHERE c.version = m.version) AS cells,"
    " (SELECT count(*) FROM callipper.point_embedding p WHERE p.version = m.version) AS points"
)
COUNTS_OF_VIEWS = (
    "CASE WHEN m.status = 'active' THEN (SELECT count(*) FROM callipper.cells) END AS cells,"
    " CASE WHEN m.status = 'active' THEN (SELECT count(*) FROM callipper.points) END AS points"
)


def show_model(dsn: str, version: int | None) -> dict[str, Any]:
    """One version, the active one for None, with its architecture and what it covers. Raises UnknownModel."""
    with db.session(dsn) as connection, connection.cursor(row_factory=dict_row) as cursor:
        query = connection.named(
            f"SELECT {COLUMNS}, m.arch, ST_AsText(m.extent, 5) AS extent, g.kind AS grid_kind, g.size_m AS grid_size_m,"
            f" {COUNTS if connection.may_read('cell_embedding') else COUNTS_OF_VIEWS},"
            " (SELECT count(*) FROM callipper.text_embedding t WHERE t.version = m.version) AS texts"
            " FROM callipper.model m JOIN callipper.text_encoder e USING (text_encoder_id)"
            " LEFT JOIN callipper.grid g USING (grid_id)"
            " WHERE m.version = coalesce(%s::bigint, callipper._active_version())"
        )
        found = cursor.execute(query, [version]).fetchone()
    if found is None:
        raise UnknownModel(version="(active)" if version is None else version)
    return found


def compare_models(dsn: str, first: int, second: int) -> dict[str, dict[str, tuple[Any, Any]]]:
    """Two versions side by side: section -> what -> (the first's, the second's). Raises UnknownModel.

    Sections: model, settings (those that differ), training, and evaluation (those figures that one of the two has).
    """
    sides = [_flat(show_model(dsn, version), _bytes(dsn, version)) for version in (first, second)]
    result = {}
    for section in sides[0]:
        one, other = (side[section] for side in sides)
        rows = {name: (one.get(name), other.get(name)) for name in dict.fromkeys([*one, *other])}
        if section == "settings":
            rows = {name: pair for name, pair in rows.items() if pair[0] != pair[1]}
        result[section] = rows
    return result


def _grid(kind: str, size_m: float) -> str:
    return f"H3, resolution {resolution_of(size_m)}" if kind == "h3" else f"{kind} {size_m:g} m"


def _flat(model: dict[str, Any], size: int) -> dict[str, dict[str, Any]]:
    """What is compared of a version."""
    metrics, provenance = model["metrics"], model["provenance"]
    about = {name: model[name] for name in ("status", "created_at", "text_encoder", "extent", "texts", "cells")}
    about |= {"CRS": f"EPSG:{model['srid']}"}
    about |= {"grid": _grid(model["grid_kind"], model["grid_size_m"]), "bytes": size}
    about |= {"POIs": provenance.get("rows"), "source": provenance.get("source")}
    settings = {"text": provenance.get("text"), **provenance.get("config", {})}
    training = {name: metrics.get(name) for name in ("validation_loss", "best_epoch")}
    training |= {f"{stage}, s": value for stage, value in provenance.get("seconds", {}).items()}
    evaluation = {
        f"{name} ({split}), {figure}": value
        for name, splits in metrics.get("evaluation", {}).items()
        for split, figures in splits.items()
        if split in SPLITS
        for figure, value in figures["model"].items()
    }
    retrieval = metrics.get("evaluation", {}).get("retrieval", {"macro_auc": {}})
    evaluation |= {f"retrieval, AUC by {way}": value for way, value in retrieval["macro_auc"].items()}
    return {"model": about, "settings": settings, "training": training, "evaluation": evaluation}


def _bytes(dsn: str, version: int) -> int:
    """The bytes of a version's partitions on disk, with their indexes."""
    with db.session(dsn) as connection:
        (size,) = connection.one(
            "SELECT coalesce(sum(pg_total_relation_size(to_regclass(format('callipper.%%I', parent || '_v' || %s)))), 0)::int8"
            " FROM unnest(%s::text[]) AS parent",
            [str(version), list(PARTITIONED)],
        )
    return int(size)


def record_evaluation(dsn: str, version: int, name: str, figures: dict[str, Any], note: Callable[[str], None]) -> None:
    """Keep figures with a version's metrics, under 'evaluation' and a name. Figures under other names stay.

    A role that may only read gets a note about it: its figures are worth showing all the same.
    """
    try:
        with db.session(dsn) as connection:
            connection.execute(
                "UPDATE callipper.model SET metrics = metrics || jsonb_build_object('evaluation',"
                " coalesce(metrics -> 'evaluation', '{}') || jsonb_build_object(%(name)s::text,"
                " coalesce(metrics -> 'evaluation' -> %(name)s, '{}') || %(figures)s)) WHERE version = %(version)s",
                {"name": name, "figures": Jsonb(figures), "version": version},
            )
    except DatabaseFailed as error:
        note(f"The figures are not kept with the version. {error}.")


def activate_model(dsn: str, version: int) -> None:
    """Make a version the active one. Raises UnknownModel."""
    with _changing(dsn, version) as connection:
        connection.execute("SELECT callipper.activate(%s)", [version])


def drop_model(dsn: str, version: int, *, force: bool = False) -> None:
    """Remove a version and everything that belongs to it. Raises UnknownModel, ModelActive."""
    with _changing(dsn, version) as connection:
        connection.execute("SELECT callipper.drop_model(%s, %s)", [version, force])


def versions_to_prune(dsn: str, keep: int) -> list[int]:
    """All versions but the `keep` newest and the active one, oldest first."""
    with db.session(dsn) as connection:
        rows = connection.execute(
            "SELECT version FROM callipper.model WHERE status <> 'active' AND version NOT IN"
            " (SELECT version FROM callipper.model ORDER BY version DESC LIMIT %s) ORDER BY version",
            [keep],
        ).fetchall()
    return [int(version) for (version,) in rows]


@contextmanager
def _changing(dsn: str, version: int) -> Iterator[db.Connection]:
    """A transaction that changes a version. Raises UnknownModel, ModelActive."""
    if not 0 < version < 2**31:  # beyond a 4-byte integer, SQL would find no function
        raise UnknownModel(version=version)
    try:
        with db.session(dsn) as connection, connection.transaction():
            yield connection
    except DatabaseFailed as error:
        if isinstance(error.__cause__, psycopg.errors.UndefinedObject):
            raise UnknownModel(version=version) from error
        if isinstance(error.__cause__, psycopg.errors.ObjectInUse):
            raise ModelActive(version=version) from error
        raise
