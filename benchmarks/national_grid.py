"""Between longitude and latitude and metres of the British National Grid, without a database.

The Helmert transformation and the transverse Mercator series of the Ordnance Survey's guide to coordinate systems in Great
Britain; it is within five metres of the survey's own grid, as PostGIS is without the grid file.
"""

from __future__ import annotations

import numpy as np

from callipper_db.arrays import Array

WGS84 = (6_378_137.0, 6_356_752.314245)  # half axes, metres
AIRY = (6_377_563.396, 6_356_256.909)
SHIFT_M = np.array([-446.448, 125.157, -542.060])
SCALE = 1 + 20.4894e-6
ROTATION = np.deg2rad(np.array([-0.1502, -0.2470, -0.8421]) / 3600)
CENTRAL_SCALE = 0.9996012717
ORIGIN = np.deg2rad([-2.0, 49.0])
DEGREE_M = 111_320.0  # of latitude, about
FALSE_ORIGIN_M = (400_000.0, -100_000.0)


def to_national_grid(lonlat: Array) -> Array:
    """(N, 2) degrees, WGS 84 -> (N, 2) easting and northing, EPSG:27700."""
    lon, lat = np.deg2rad(lonlat.T)
    return _project(*_geographic(_shift(_cartesian(lon, lat))))


def from_national_grid(metres: Array) -> Array:
    """The way back: (N, 2) easting and northing -> (N, 2) degrees, to a millimetre after some corrections."""
    lonlat = np.tile(np.rad2deg(ORIGIN), (len(metres), 1))
    for _ in range(20):
        metres_a_degree = DEGREE_M * np.column_stack([np.cos(np.deg2rad(lonlat[:, 1])), np.ones(len(metres))])
        lonlat += (metres - to_national_grid(lonlat)) / metres_a_degree
    return lonlat


def _cartesian(lon: Array, lat: Array) -> Array:
    """(3, N) metres from the middle of the earth, on the ellipsoid of WGS 84."""
    large, small = WGS84
    normal = large / np.sqrt(1 - (1 - small**2 / large**2) * np.sin(lat) ** 2)
    return np.stack(
        [
            normal * np.cos(lat) * np.cos(lon),
            normal * np.cos(lat) * np.sin(lon),
            normal * small**2 / large**2 * np.sin(lat),
        ]
    )


def _shift(place: Array) -> Array:
    x, y, z = ROTATION
    turn = np.array([[SCALE, -z, y], [z, SCALE, -x], [-y, x, SCALE]])
    shifted: Array = turn @ place + SHIFT_M[:, None]
    return shifted


def _geographic(place: Array) -> tuple[Array, Array]:
    """Longitude and latitude in radians on Airy's ellipsoid, by iteration."""
    large, small = AIRY
    eccentricity = 1 - small**2 / large**2
    x, y, z = place
    across = np.hypot(x, y)
    lat = np.arctan2(z, across * (1 - eccentricity))
    for _ in range(5):  # to 1e-12 after three
        normal = large / np.sqrt(1 - eccentricity * np.sin(lat) ** 2)
        lat = np.arctan2(z + eccentricity * normal * np.sin(lat), across)
    return np.arctan2(y, x), lat


def _project(lon: Array, lat: Array) -> Array:
    """The series of the guide, whose terms I to VI these are."""
    large, small = AIRY
    eccentricity = 1 - small**2 / large**2
    sine2 = np.sin(lat) ** 2
    nu = large * CENTRAL_SCALE / np.sqrt(1 - eccentricity * sine2)
    rho = large * CENTRAL_SCALE * (1 - eccentricity) / (1 - eccentricity * sine2) ** 1.5
    eta2 = nu / rho - 1
    tan2, cosine = np.tan(lat) ** 2, np.cos(lat)
    first = _meridian(lat) + FALSE_ORIGIN_M[1]
    second = nu / 2 * np.sin(lat) * cosine
    third = nu / 24 * np.sin(lat) * cosine**3 * (5 - tan2 + 9 * eta2)
    third_a = nu / 720 * np.sin(lat) * cosine**5 * (61 - 58 * tan2 + tan2**2)
    fourth = nu * cosine
    fifth = nu / 6 * cosine**3 * (nu / rho - tan2)
    sixth = nu / 120 * cosine**5 * (5 - 18 * tan2 + tan2**2 + 14 * eta2 - 58 * tan2 * eta2)
    east = lon - ORIGIN[0]
    return np.column_stack(
        [
            FALSE_ORIGIN_M[0] + fourth * east + fifth * east**3 + sixth * east**5,
            first + second * east**2 + third * east**4 + third_a * east**6,
        ]
    )


def _meridian(lat: Array) -> Array:
    """Metres along the central meridian from the origin's latitude."""
    large, small = AIRY
    n = (large - small) / (large + small)
    less, more = lat - ORIGIN[1], lat + ORIGIN[1]
    arc: Array = (1 + n + 5 / 4 * (n**2 + n**3)) * less
    arc -= (3 * (n + n**2) + 21 / 8 * n**3) * np.sin(less) * np.cos(more)
    arc += 15 / 8 * (n**2 + n**3) * np.sin(2 * less) * np.cos(2 * more)
    arc -= 35 / 24 * n**3 * np.sin(3 * less) * np.cos(3 * more)
    return small * CENTRAL_SCALE * arc
