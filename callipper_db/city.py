"""The active model of a database for programs and notebooks: `city = callipper_db.connect(dsn)`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import psycopg
from psycopg import sql

from callipper_db import db, schema, search
from callipper_db.arrays import Array
from callipper_db.binary_copy import read_rows
from callipper_db.errors import AreasUnusable, LabelsUnusable, TextUnknown, needs_extra
from callipper_db.export import CELL_NUMBERS, CELL_TEXTS
from callipper_db.languages import ENGLISH
from callipper_db.models import active_version
from callipper_db.own_table import TableOptions, TableSummary, embed_table
from callipper_db.place_encoder import PlaceEncoder, open_encoder
from callipper_db.progress import Reporter, Silent
from callipper_db.tables import DIMENSIONS

if TYPE_CHECKING:
    import geopandas
    import pandas
    from sklearn.linear_model import LogisticRegression

FEWEST_LABELS = 5
PROBE_C = 0.1  # inverse of the ridge


class City:
    """What the active model of a database knows. Each call asks the version that is active then; none keeps a session open."""

    def __init__(self, dsn: str, *, torch: bool | None = None) -> None:
        """torch: whether to embed places with it; None: where it is installed and the role may read the weights, else by SQL.

        Raises ConnectionFailed, NotInitialised, NoActiveModel.
        """
        schema.ensure_current(dsn)
        self.dsn, self.torch = dsn, torch
        self._kept: PlaceEncoder | None = None
        with db.session(dsn, autocommit=True) as connection:
            self._encoder(connection)

    @property
    def version(self) -> int:
        """The model version that is active now. Raises NoActiveModel."""
        with db.session(self.dsn) as connection:
            return active_version(connection)

    @property
    def dimensions(self) -> int:
        """D, numbers of an embedding."""
        return DIMENSIONS

    def embed(self, lon: npt.ArrayLike, lat: npt.ArrayLike) -> Array:
        """(N,) longitudes and latitudes in degrees -> (N, D) float32, unit length. Raises PlacesUnusable."""
        lonlat = np.column_stack(
            [np.atleast_1d(np.asarray(lon, np.float64)), np.atleast_1d(np.asarray(lat, np.float64))]
        )
        with db.session(self.dsn, autocommit=True) as connection:
            return self._encoder(connection).embed_lonlat(connection, lonlat)

    def embed_text(self, texts: Sequence[str]) -> Array:
        """(T,) texts -> (T, D) float32, unit length, in the space of places. Raises TextUnknown."""
        if isinstance(texts, str):
            raise TypeError("texts is a sequence of texts: write [text] for one")
        with db.session(self.dsn, autocommit=True) as connection:
            try:
                rows = connection.execute(
                    "SELECT callipper.text_embed(t)::real[] FROM unnest(%s::text[]) WITH ORDINALITY AS q(t, n) ORDER BY n",
                    [list(texts)],
                ).fetchall()
            except (psycopg.errors.NoDataFound, psycopg.errors.InvalidParameterValue) as error:
                raise TextUnknown(reason=error.diag.message_primary) from error
        return np.array([emb for (emb,) in rows], np.float32).reshape(len(rows), DIMENSIONS)

    def search(self, text: str, k: int = 10, within: str | None = None) -> list[dict[str, Any]]:
        """The k cells that answer a text best, with the reasons; see search.nearest_cells."""
        return search.nearest_cells(self.dsn, text, k, within)

    def describe(self, lon: float, lat: float, k: int = 10, language: str = ENGLISH) -> list[dict[str, Any]]:
        """Up to k kinds of places that stand out at a place; see search.describe_place."""
        return search.describe_place(self.dsn, f"{lon},{lat}", k, language)

    def cells(self) -> tuple[geopandas.GeoDataFrame, Array]:
        """All C cells with the columns of callipper_map.cell, and their (C, D) float32 embeddings in the same order.

        With a grid of H3 cells, `h3index` is the index of each. Of a version of an earlier program, `cluster` and
        `poi_count` are -1 and `support` is NaN.

        Raises MissingExtra without geopandas.
        """
        with needs_extra("City.cells", "notebook"):
            import geopandas
            import pandas
            import shapely

        with db.snapshot(self.dsn) as connection:
            numbers = sql.SQL(
                "SELECT cell_id, lon, lat, coalesce(cluster, -1), coalesce(support, 'nan'), coalesce(poi_count, -1)"
                " FROM callipper_map.cell ORDER BY cell_id"
            )
            columns = dict(zip(CELL_NUMBERS, read_rows(connection, numbers, list(CELL_NUMBERS.values())), strict=True))
            (has_h3,) = connection.one("SELECT EXISTS (SELECT FROM callipper_map.cell_h3)")
            names = (*CELL_TEXTS, "h3index") if has_h3 else CELL_TEXTS
            texts = connection.named("SELECT {}, ST_AsBinary(geom) FROM callipper_map.cell {} ORDER BY cell_id").format(
                sql.SQL(", ").join(map(sql.Identifier, names)),
                sql.SQL(
                    "JOIN (SELECT cell_id, h3index FROM callipper_map.cell_h3) AS h USING (cell_id)" if has_h3 else ""
                ),
            )
            rows = connection.cursor(binary=True).execute(texts).fetchall()
            vectors = sql.SQL("SELECT emb FROM callipper.cells ORDER BY cell_id")
            (emb,) = read_rows(connection, vectors, ["vector"], DIMENSIONS)
        *said, shapes = ([row[place] for row in rows] for place in range(len(names) + 1))
        frame = pandas.DataFrame(columns | dict(zip(names, said, strict=True)))
        return geopandas.GeoDataFrame(frame, geometry=shapely.from_wkb(np.array(shapes, object)), crs=4326), emb

    def label_cells(self, lon: npt.ArrayLike, lat: npt.ArrayLike, labels: Sequence[Any]) -> pandas.DataFrame:
        """How likely each cell has each label, from (N,) labelled places: a column a label, rows by cell_id, sums of 1.

        A linear probe: logistic regression on the embeddings. The column `unsure` says where one more label would teach most,
        from 1 down to 0 (the entropy of the labels). Raises LabelsUnusable below five places or two labels,
        PlacesUnusable, MissingExtra without geopandas or scikit-learn.
        """
        with needs_extra("City.label_cells", "notebook"):
            import pandas
            import sklearn  # noqa: F401

        answers = np.asarray(labels)
        distinct = np.unique(answers)
        if len(answers) < FEWEST_LABELS or len(distinct) < 2:
            raise LabelsUnusable(places=len(answers), labels=len(distinct), fewest=FEWEST_LABELS)
        places = self.embed(lon, lat)
        frame, emb = self.cells()
        probe = fit_few_shot_probe(places, answers)
        chance = probe.predict_proba(emb * np.sqrt(self.dimensions))
        entropy = -(chance * np.log(np.maximum(chance, 1e-12))).sum(axis=1) / np.log(len(distinct))
        result = pandas.DataFrame(chance, columns=probe.classes_, index=frame["cell_id"])
        return result.assign(unsure=entropy)

    def embed_areas(self, areas: geopandas.GeoDataFrame | geopandas.GeoSeries) -> Array:
        """(N,) polygons in any CRS -> (N, D) float32: the mean of each one's cells, weighted by their support.

        Raises AreasUnusable where the CRS is unknown or PostGIS cannot take a geometry.
        """
        if areas.crs is None:
            raise AreasUnusable(reason="they have no CRS. Say which it is: areas.set_crs(4326)")
        shapes = areas.to_crs(4326).geometry.to_wkb().tolist()
        with db.session(self.dsn, autocommit=True) as connection:
            statement = connection.named(
                "SELECT callipper.area_embed(ST_SetSRID(ST_GeomFromWKB(w), 4326))::real[]"
                " FROM unnest(%s::bytea[]) WITH ORDINALITY AS a(w, n) ORDER BY n"
            )
            try:
                rows = connection.execute(statement, [shapes]).fetchall()
            except (psycopg.errors.InvalidParameterValue, psycopg.errors.InternalError) as error:
                raise AreasUnusable(reason=error.diag.message_primary) from error
        if any(emb is None for (emb,) in rows):
            raise AreasUnusable(reason="one of them is missing")
        return np.array([emb for (emb,) in rows], np.float32).reshape(len(rows), DIMENSIONS)

    def embed_table(
        self, table: str, column: str = "emb", options: TableOptions | None = None, reporter: Reporter | None = None
    ) -> TableSummary:
        """Fill a column of a table of yours; see own_table.embed_table."""
        return embed_table(self.dsn, table, column, reporter or Silent(), options, torch=self.torch)

    def _encoder(self, connection: db.Connection) -> PlaceEncoder:
        """The active version's, which is loaded once until another is active or it is refreshed."""
        self._kept = open_encoder(connection, torch=self.torch, kept=self._kept)
        return self._kept


def fit_few_shot_probe(places: Array, labels: Array) -> LogisticRegression:
    """(N, D) embeddings and (N,) labels of few places -> a linear probe. It reads embeddings times sqrt(D)."""
    from sklearn.linear_model import LogisticRegression

    # Too few places to hold some out, so the ridge is strong instead. Rare labels weigh as much as common ones.
    probe = LogisticRegression(C=PROBE_C, class_weight="balanced", max_iter=1000)
    return probe.fit(places * np.sqrt(places.shape[1]), labels)
