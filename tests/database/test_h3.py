"""A model whose grid has H3 cells: trained, shown in tiles, refreshed; against the h3 package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas
import h3
import numpy as np
import pytest
from click.testing import Result
from test_map_functions import tile_of
from test_wide import around, write_places

from callipper_db import db, models
from callipper_db.city import City
from callipper_db.errors import GridNotSquare
from callipper_db.export import export_layer, export_raster
from callipper_db.h3_cells import edge_m
from callipper_db.load import load
from callipper_db.progress import Silent
from callipper_trainer.refresh.refresh import RefreshCache, refresh
from callipper_trainer.text_encoder import TextEncoder
from mvt import features
from sessions import user_session
from town import CONFIG, MIDDLE, train_town

RESOLUTION = 9


def cells_of(connection: db.Connection) -> list[tuple[Any, ...]]:
    return connection.execute("SELECT h3index, h3, lon, lat, cell_id FROM callipper_map.cell_h3 ORDER BY h3").fetchall()


def test_a_model_of_h3_cells(
    database: str, encoder: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    places = around(*MIDDLE, 300, 0.01)
    load(database, [write_places(tmp_path / "town.csv", places)])
    config = replace(CONFIG, epochs=1)
    summary = train_town(database, tmp_path, config, grid_m=edge_m(RESOLUTION), grid_kind="h3")
    with user_session(database) as connection:
        cells = cells_of(connection)
        assert len(cells) == summary.cells
        for index, number, lon, lat, _ in cells:
            assert h3.latlng_to_cell(lat, lon, RESOLUTION) == index == h3.int_to_str(number)
        assert {h3.latlng_to_cell(lat, lon, RESOLUTION) for lon, lat in places} <= {cell[0] for cell in cells}
        embeddings = connection.execute("SELECT emb::real[] FROM cells ORDER BY cell_id").fetchall()
        at = {cell[-1]: cell[0] for cell in cells}
        for cell_id, (emb,) in list(zip(sorted(at), embeddings, strict=True))[::50]:
            lat, lon = h3.cell_to_latlng(at[cell_id])
            row = connection.execute(
                "SELECT loc_embed(ST_SetSRID(ST_Point(%s, %s), 4326))::real[]", [lon, lat]
            ).fetchone()
            np.testing.assert_allclose(emb, row[0] if row else None, atol=1e-5)
        # A tile merges the cells of each coarser cell.
        z = 9
        (tile,) = connection.execute(
            "SELECT callipper_map.cell_tile(%s, %s, %s)", [z, *tile_of(connection, z)]
        ).fetchone() or (None,)
        shown = features(tile, "cells")
        assert 0 < len(shown) <= len({h3.cell_to_parent(cell[0], RESOLUTION - 1) for cell in cells})
    # Python and files have the index as well.
    frame, _ = City(database, torch=False).cells()
    assert frame.set_index("cell_id")["h3index"].to_dict() == at
    export_layer(database, "cells", "geoparquet", tmp_path / "cells.parquet", Silent())
    assert geopandas.read_parquet(tmp_path / "cells.parquet").set_index("cell_id")["h3index"].to_dict() == at
    with pytest.raises(GridNotSquare, match="h3"):
        export_raster(database, tmp_path / "cells.tif", Silent())
    compared = models.compare_models(database, summary.version, summary.version)
    assert compared["model"]["grid"] == ("H3, resolution 9", "H3, resolution 9")

    # A POI outside brings the cells around it.
    east = MIDDLE[0] + 0.05, MIDDLE[1]
    load(database, [write_places(tmp_path / "more.csv", [east])])
    found = refresh(database, Silent(), cache=RefreshCache(encoder=encoder))
    assert found.new_cells == 49
    with user_session(database) as connection:
        now = {cell[0] for cell in cells_of(connection)}
    assert h3.latlng_to_cell(east[1], east[0], RESOLUTION) in now - {cell[0] for cell in cells}


def test_a_resolution_without_h3_is_refused(run: Callable[..., Result]) -> None:
    assert "--grid h3" in run("train", "--resolution", "9", exit_code=2).output
