"""A transformer for scikit-learn's pipelines: longitudes and latitudes in, embeddings out."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_array

from callipper_db.arrays import Array
from callipper_db.city import City


class PlaceEmbedder(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn carries no types
    """(N, 2) longitude and latitude in degrees -> (N, D) float32 by the active model of a database.

    It learns nothing: `fit` connects. A pickle holds the DSN, and connects again where it is loaded.
    """

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn

    def fit(self, X: Any, y: Any = None) -> PlaceEmbedder:  # scikit-learn's names
        """Connect, and keep the number of dimensions."""
        self._check(X)
        self.n_features_in_ = 2
        self.n_dimensions_ = self._connected().dimensions
        return self

    def transform(self, X: Any) -> Array:
        """Embed places. Raises PlacesUnusable."""
        places = self._check(X)
        return self._connected().embed(places[:, 0], places[:, 1])

    def get_feature_names_out(self, input_features: Any = None) -> Array:
        """emb0, emb1, ..."""
        return np.array([f"emb{number}" for number in range(self._connected().dimensions)], object)

    def _connected(self) -> City:
        if getattr(self, "_city", None) is None:
            self._city: City | None = City(self.dsn)
        assert self._city is not None
        return self._city

    def _check(self, X: Any) -> Array:
        places: Array = check_array(X, dtype=np.float64)
        if places.shape[1] != 2:
            raise ValueError(f"places are two columns, longitude and latitude; these are {places.shape[1]}")
        return places

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        return {name: value for name, value in state.items() if name != "_city"}

    def __sklearn_is_fitted__(self) -> bool:
        return True
