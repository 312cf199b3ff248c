"""What a request asks: its parameters, checked before the database sees them."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from callipper_db.errors import LanguageUnknown
from callipper_db.languages import ENGLISH, check_language

LONGEST_TEXT = 1000  # characters; the sentence encoder reads about as many
MOST_EXAMPLES = 20
MOST_CELLS = 50_000  # of a download


def _text(value: str) -> str:
    if "\x00" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError("has a character that no text holds")
    if not (value := value.strip()):
        raise ValueError("is empty")
    return value


def read_lonlat(value: str) -> tuple[float, float]:
    """'LON,LAT' in degrees as two numbers. Raises ValueError, which says what is wrong."""
    try:
        lon, lat = (float(part) for part in value.split(","))
    except ValueError:
        raise ValueError("is not a place: longitude and latitude in degrees, such as 7.42,43.73") from None
    if not (math.isfinite(lon) and math.isfinite(lat) and -180 <= lon <= 180 and -90 <= lat <= 90):
        raise ValueError("is not on earth: longitude comes first, from -180 to 180, then latitude, from -90 to 90")
    return lon, lat


def _place(value: str) -> str:
    lon, lat = read_lonlat(value)
    return f"{lon:.7f},{lat:.7f}"


Text = Annotated[str, Field(max_length=LONGEST_TEXT), AfterValidator(_text)]
Place = Annotated[str, Field(max_length=60), AfterValidator(_place)]
Version = Annotated[int, Field(ge=1, le=2**31 - 1)]


class Question(BaseModel):
    """A question: texts and places that the answer should be like, and such as it should be unlike."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    q: Annotated[Text | None, Field(description="A text: 'somewhere to eat'.")] = None
    like: Annotated[list[Text], Field(max_length=MOST_EXAMPLES, description="More texts that it should be like.")] = []
    unlike: Annotated[list[Text], Field(max_length=MOST_EXAMPLES, description="Texts that it should be unlike.")] = []
    like_at: Annotated[
        list[Place], Field(max_length=MOST_EXAMPLES, description="Places that it should be like, LON,LAT.")
    ] = []
    unlike_at: Annotated[
        list[Place], Field(max_length=MOST_EXAMPLES, description="Places that it should be unlike.")
    ] = []
    model: Annotated[Version | None, Field(description="Model version; the active one by default.")] = None

    @property
    def likes(self) -> list[str]:
        """All texts that the answer should be like."""
        return [*([self.q] if self.q else []), *self.like]

    @property
    def is_plain(self) -> bool:
        """Whether it is one text alone, which search() answers with reasons."""
        return len(self.likes) == 1 and not (self.unlike or self.like_at or self.unlike_at)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to like."""
        return not (self.likes or self.like_at)

    @property
    def key(self) -> tuple[Any, ...]:
        """The same for the same question."""
        return (tuple(self.likes), tuple(self.unlike), tuple(self.like_at), tuple(self.unlike_at))


class AreaQuestion(Question):
    """A question within an area."""

    within: Annotated[
        Text | None,
        Field(
            max_length=20_000,
            description="A bounding box, west,south,east,north in degrees, or a polygon as WKT in longitude and latitude.",
        ),
    ] = None


class CellQuestion(AreaQuestion):
    """A question whose best cells are listed."""

    k: Annotated[int, Field(ge=1, le=50, description="How many cells.")] = 10
    apart: Annotated[
        float, Field(ge=0, le=1e6, allow_inf_nan=False, description="Metres that cells of the list are apart at least.")
    ] = 0.0


class Download(AreaQuestion):
    """A question whose cells are wanted as a file."""

    k: Annotated[int, Field(ge=1, le=MOST_CELLS, description="How many cells.")] = MOST_CELLS
    format: Annotated[Literal["geojson", "csv"], Field(description="Of the file.")] = "geojson"


class ChangeQuestion(Question):
    """A question that two versions are compared by."""

    other: Annotated[Version, Field(description="The version to compare with.")]
    k: Annotated[int, Field(ge=1, le=50, description="How many cells.")] = 10


def _language(code: str) -> str:
    """Raises ValueError with the languages that there are."""
    try:
        return check_language(code)
    except LanguageUnknown as error:
        raise ValueError(str(error)) from error


Language = Annotated[str, AfterValidator(_language)]


class PlaceQuestion(BaseModel):
    """A place."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    at: Annotated[Place, Field(description="The place, LON,LAT in degrees.")]
    k: Annotated[int, Field(ge=1, le=50, description="How many kinds of places, and how many similar cells.")] = 5
    min_distance: Annotated[
        float, Field(ge=0, le=1e7, allow_inf_nan=False, description="Metres that similar cells are away at least.")
    ] = 500.0
    language: Annotated[Language, Field(description="Of the names of kinds of places, such as de.")] = ENGLISH
    model: Annotated[Version | None, Field(description="Model version; the active one by default.")] = None
