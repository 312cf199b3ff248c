"""Load POIs: a file of any known format goes by COPY into a staging table, and from there by upsert into callipper.poi."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from callipper_db import db
from callipper_db.errors import BadInput, NothingLeft, NotInitialised, TooManyRejects
from callipper_db.misplaced import doubts
from callipper_db.other_degrees import read_otherwise
from callipper_db.outliers import find_outliers
from callipper_db.points import TO_POINT, unknown_srid
from callipper_db.progress import Reporter, Silent
from callipper_db.read import SOURCE_SUFFIXES, Block, LeftOut, Reader, Record, Refused, open_reader
from callipper_db.read.columns import LoadOptions, says_e7
from callipper_db.read.copy_format import CopyFormat, copy_format
from callipper_db.read.place import OUT_OF_RANGE, SWAPPED, Place, Rules, out_of_range
from callipper_db.read.record import BAD_BYTE, BAD_GEOMETRY, HOPELESS, Rows
from callipper_db.upsert import ADD_SEEN, SEEN, remove_unseen, upsert

__all__ = ["FileSummary", "LoadOptions", "LoadSummary", "load"]

REJECTS_HEADER = ["file", "row", "reason", "content"]
CONTENT_LIMIT = 1000  # characters of a refused row that are shown
DOUBTFUL_KEPT = 10_000  # rows out of range that are kept as they are in the file, until all rows are read

STAGING = """
CREATE TEMPORARY TABLE poi_load (
    "row" bigint, x float8, y float8, source text COLLATE "C", source_id text COLLATE "C", name text, category text,
    category_group text, description text, shape text, attributes jsonb
) ON COMMIT DROP"""

# In the order of Place. The table has the columns of fixed length first, because they are found faster there.
COPY = """
COPY poi_load ("row", source, source_id, name, category, category_group, description, x, y, shape, attributes) FROM STDIN"""

PLACE = """
UPDATE poi_load AS l SET x = ST_X(p.place), y = ST_Y(p.place)
FROM (
    SELECT ctid AS id, pg_temp.callipper_point(x, y, shape, %(srid)s::int4) AS place
    FROM poi_load WHERE shape IS NOT NULL OR %(srid)s <> 4326
) AS p
WHERE l.ctid = p.id"""

REFUSE = """
DELETE FROM poi_load
WHERE (x BETWEEN -180 AND 180 AND y BETWEEN -90 AND 90) IS NOT TRUE
RETURNING "row", x, y, left(jsonb_strip_nulls(to_jsonb(poi_load))::text, %s)"""

MANY_SWAPPED = 0.05  # share of rows with a longitude for a latitude from which the other rows are not believed either

# Columns that may hold the category that no row got: some values, each of many rows.
LIKE_CATEGORIES = """
SELECT key
FROM (SELECT attributes FROM poi_load LIMIT 2000) AS l, jsonb_each_text(l.attributes) AS a(key, value)
GROUP BY key
HAVING count(DISTINCT value) BETWEEN 2 AND greatest(2, count(*) / 4) AND count(*) FILTER (WHERE value ~ '^[-+.0-9]+$') = 0
ORDER BY count(*) DESC, key
LIMIT 8"""


@dataclass
class FileSummary:
    """What happened to the rows of a file: the counts below `rows` add up to it."""

    path: Path
    rows: int = 0
    inserted: int = 0
    updated: int = 0
    unchanged: int = 0
    duplicates: int = 0  # the file has the same id again further down
    removed: int = 0  # rows of the same sources that the file lacks; with replace_source and one file
    filtered: int = 0  # left out: they do not match `where`, are closed, or are street furniture
    rejected: int = 0
    left_out: dict[str, int] = field(default_factory=dict)  # why filtered -> rows
    without_category: int = 0  # of the rows that are not filtered or rejected
    notes: list[str] = field(default_factory=list)  # what the user should look at
    reasons: dict[str, int] = field(default_factory=dict)  # why rejected -> rows
    rejects: Path | None = None  # the file that holds them


COUNTS = ("rows", "inserted", "updated", "unchanged", "duplicates", "filtered", "rejected")


@dataclass
class LoadSummary:
    files: list[FileSummary] = field(default_factory=list)
    removed: int = 0  # rows of the same sources that the files no longer hold; with replace_source

    def total(self, count: str) -> int:
        """The sum over the files of one of COUNTS."""
        return sum(getattr(file, count) for file in self.files)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the totals, and the same per file."""
        totals = {count: self.total(count) for count in COUNTS} | {"removed": self.removed}
        return totals | {"files": [_file_dict(file) for file in self.files]}


def load(
    dsn: str,
    paths: Sequence[Path],
    options: LoadOptions | None = None,
    reporter: Reporter | None = None,
) -> LoadSummary:
    """Load files of POIs into callipper.poi, each in one transaction; a file that was loaded before changes nothing.

    Rows that cannot be used go to a rejects file. Only the same (source, source_id) is a duplicate. A column such as `dup`
    counts only through `options.where`, {"dup": "0"}.
    Raises BadInput, TooManyRejects, MissingExtra, NotInitialised; the files before the bad one stay loaded.
    """
    options, reporter = options or LoadOptions(), reporter or Silent()
    paths = [Path(path) for path in paths]
    for path in paths:
        with open_reader(path, options):
            pass
    rejects = Rejects(options.rejects)
    summary = LoadSummary()
    with db.session(dsn, autocommit=True) as connection:
        if connection.one("SELECT to_regclass('callipper.poi')") == (None,):
            raise NotInitialised
        alone = len(paths) == 1
        if options.replace_source and not alone:
            connection.execute(SEEN)
        for path in paths:
            with rejects.of_file(path), connection.transaction():
                summary.files.append(_load_file(connection, path, options, rejects, reporter, alone))
                summary.removed += summary.files[-1].removed
        if options.replace_source and not alone:
            with connection.transaction():
                summary.removed = remove_unseen(connection)
    return summary


class Rejects:
    """The rows that are set aside, a CSV file per input, or one for all where the user names it."""

    def __init__(self, named: Path | None) -> None:
        self._named = named
        self._begun: set[Path] = set()  # files of this run, to append to
        self._out: IO[Any] | None = None
        self.input = Path()
        self.reasons: Counter[str] = Counter()
        self.first = ""

    @property
    def path(self) -> Path:
        return self._named or Path(f"{self.input.name}.rejects.csv")

    @contextmanager
    def of_file(self, path: Path) -> Iterator[None]:
        """Rows added in this context are from `path`. If loading fails, they are removed again, unless all were rejected."""
        self.input, self.reasons, self.first = path, Counter(), ""
        before = self.path.stat().st_size if self.path in self._begun else None
        try:
            yield
        except TooManyRejects:
            raise
        except BaseException:
            self._close()
            self._take_back(before)
            raise
        else:
            if not self.reasons and before is None and _is_rejects(self.path):
                self.path.unlink()  # of an earlier run; nothing was rejected this time
        finally:
            self._close()

    def add(self, refused: Refused) -> None:
        self._out = self._out or self._open()
        content = refused.raw[:CONTENT_LIMIT].replace(BAD_BYTE, "\ufffd").replace("\0", "\ufffd").rstrip("\r\n")
        row = csv.writer(self._out, lineterminator="\n")
        row.writerow([self.input.name, refused.row, refused.reason, content])
        self.first = self.first or refused.reason
        self.reasons[refused.reason] += 1

    def _open(self) -> IO[Any]:
        path = self.path
        try:
            if path not in self._begun and path.exists() and not _is_rejects(path):
                raise BadInput(path=path, reason="it exists and holds no rejects; choose another file with --rejects")
            mode = "a" if path in self._begun else "w"
            out = path.open(mode, encoding="utf-8", errors="replace", newline="")
        except OSError as error:
            reason = f"the rejected rows cannot be written there ({error.strerror}); choose another file with --rejects"
            raise BadInput(path=path, reason=reason) from error
        if path not in self._begun:
            csv.writer(out, lineterminator="\n").writerow(REJECTS_HEADER)
            self._begun.add(path)
        return out

    def _close(self) -> None:
        if self._out:
            self._out.close()
            self._out = None

    def _take_back(self, before: int | None) -> None:
        if before is not None:
            with open(self.path, "r+b") as file:
                file.truncate(before)
        elif self.path in self._begun:
            self._begun.discard(self.path)
            self.path.unlink(missing_ok=True)


def _load_file(
    connection: db.Connection,
    path: Path,
    options: LoadOptions,
    rejects: Rejects,
    reporter: Reporter,
    alone: bool,
) -> FileSummary:
    """alone: no other file is loaded, so rows of the same sources that this one lacks can be removed at once."""
    summary = FileSummary(path)
    connection.execute(STAGING)
    with open_reader(path, options) as reader:
        reader.look(Look(path, reporter))
        srid = options.srid or reader.srid() or 4326
        rules = Rules.of(path, reader, options, source_name(path, options.layer), srid)
        sent = _copy(connection, reader, rules, rejects, summary, reporter)
        summary.notes += reader.notes
    if not summary.rows:
        raise BadInput(path=path, reason="it holds no rows")
    if (reason := unknown_srid(connection, srid)) is not None:
        raise BadInput(path=path, reason=reason)
    if srid != 4326 and sent.rows:
        _check_srid(connection, path, srid)
    if sent.shapes or srid != 4326:
        _place(connection, srid)
    if sent.shapes or sent.doubtful or srid != 4326:
        note = read_otherwise(connection, says_e7(rules.columns))
        summary.notes += [f"{note[0].upper()}{note[1:]}"] if note else []
        sent.rows -= _refuse(connection, rejects, sent.doubtful_rows)
    staged = sent.rows
    summary.rejected, summary.reasons = rejects.reasons.total(), dict(rejects.reasons.most_common())
    summary.rejects = rejects.path if summary.rejected else None
    if summary.filtered == summary.rows:
        reasons = "; ".join(f"{number:,} {reason}" for reason, number in summary.left_out.items())
        raise NothingLeft(path=path, rows=summary.rows, reasons=reasons)
    if summary.rejected and summary.rejected + summary.filtered == summary.rows:
        reason = rejects.first
        if summary.reasons.get(SWAPPED, 0) > summary.rejected / 2:
            reason = f"{SWAPPED}. If they are, {_how_to_swap(rules)}"
        elif reason == OUT_OF_RANGE and options.srid is None:
            reason += " (if they are metres, name their CRS: --srid 2154)"
        raise TooManyRejects(path=path, rows=summary.rejected, reason=reason, rejects=rejects.path)
    if sent.without_category:
        _look_at_categories(connection, summary, staged)
    elif (rules.columns.category or "").lower() == "type" and not options.category_column:
        _look_at_type(connection, summary)
    if summary.reasons.get(SWAPPED, 0) > MANY_SWAPPED * summary.rows:
        summary.notes.append(
            f"{summary.reasons[SWAPPED]:,} rows are refused because their {SWAPPED}, in the others too."
            f" If they are, {_how_to_swap(rules)}"
        )
    else:
        summary.notes += doubts(connection, staged, srid, _how_to_swap(rules))
    summary.notes += _outliers(connection, staged)
    if options.replace_source and not alone:
        connection.execute(ADD_SEEN)
    summary.duplicates, summary.updated, summary.inserted, summary.removed = upsert(
        connection, staged, path.name, options.replace_source and alone
    )
    summary.unchanged = staged - summary.duplicates - summary.updated - summary.inserted
    connection.execute("DROP TABLE poi_load")
    return summary


class Look:
    """Shows the survey of a file without a header as a stage. A file with a header needs no survey."""

    def __init__(self, path: Path, reporter: Reporter) -> None:
        self._path, self._reporter, self._begun = path, reporter, False

    def __call__(self, bytes_read: int) -> None:
        """Take the bytes read since the last call."""
        if not self._begun:
            self._reporter.stage(f"looking through {self._path.name}", self._path.stat().st_size)
            self._begun = True
        self._reporter.advance(bytes_read)


def _look_at_categories(connection: db.Connection, summary: FileSummary, staged: int) -> None:
    """Count the rows without a category, and say which columns might have held it when no row got one."""
    (summary.without_category,) = connection.one("SELECT count(*) FILTER (WHERE category IS NULL) FROM poi_load")
    if summary.without_category == staged:
        found = [str(key) for (key,) in connection.execute(LIKE_CATEGORIES)]
        may = f" These columns might hold it: {', '.join(found)}." if found else ""
        summary.notes.append(f"no row got a category.{may} Name its column with --category-column")
    elif summary.without_category:
        summary.notes.append(f"{summary.without_category:,} rows have no category")


def _look_at_type(connection: db.Connection, summary: FileSummary) -> None:
    """Add a note if all rows have the same value in the column `type`: most likely it is no category."""
    found = connection.execute(
        "SELECT DISTINCT category FROM (SELECT category FROM poi_load LIMIT 1000) AS l"
    ).fetchall()
    if len(found) == 1 and summary.rows > 1:
        summary.notes.append(
            f"all rows have the category {found[0][0]!r}, of the column type. If another column says what they are,"
            " name it with --category-column"
        )


def _outliers(connection: db.Connection, staged: int) -> list[str]:
    found = find_outliers(connection, "SELECT source || ' ' || source_id AS name, x, y FROM poi_load", staged)
    return [f"{found} Loaded all the same; train leaves such rows out, unless with --keep-outliers"] if found else []


def _how_to_swap(rules: Rules) -> str:
    columns = rules.columns
    if columns.lon and columns.lat:
        return f"load the file again with --lon-column {columns.lat} --lat-column {columns.lon} --replace-source"
    return "swap the numbers of its geometries, and load it again with --replace-source"


def _check_srid(connection: db.Connection, path: Path, srid: int) -> None:
    """Raises BadInput for degrees that are declared as metres."""
    in_degrees = connection.execute(
        connection.named(
            "SELECT bool_and(abs(x) <= 180 AND abs(y) <= 90) AND max(abs(x)) > 0,"
            " (SELECT bool_or(proj4text LIKE '%%+proj=longlat%%') FROM spatial_ref_sys WHERE srid = %s)"
            " FROM poi_load WHERE shape IS NULL"
        ),
        [srid],
    ).fetchone()
    if in_degrees and in_degrees[0] and in_degrees[1] is False:
        reason = f"its coordinates look like degrees, and EPSG:{srid} is in metres; leave --srid away, or give 4326"
        raise BadInput(path=path, reason=reason)


def source_name(path: Path, layer: str | None = None) -> str:
    """The file's name without its endings, and the layer: 'london_pois.csv.gz' is the source 'london_pois'.

    Each layer numbers its own rows. So the layers of 'city.gpkg' are the sources 'city/shops' and 'city/stops'.
    """
    name = Path(path.name)
    while name.suffix.lower() in SOURCE_SUFFIXES:
        name = name.with_suffix("")
    return f"{name}/{layer}" if layer else str(name)


@dataclass
class Sent:
    """What is in the staging table."""

    rows: int = 0
    shapes: int = 0  # rows whose place PostGIS is to find
    without_category: int = 0
    doubtful: int = 0  # rows that are out of range, unless the file counts degrees in another way
    doubtful_rows: dict[int, Refused] = field(default_factory=dict)  # by their numbers, the first of them

    def add(self, rows: int, without_category: int) -> None:
        """Count the rows of a block that was converted as a whole: they have coordinates."""
        self.rows += rows
        self.without_category += without_category

    def add_places(self, places: Sequence[Place]) -> None:
        """Count rows that were converted one by one."""
        self.add(len(places), sum(place.category is None for place in places))
        self.shapes += sum(place.shape is not None for place in places)

    def add_doubtful(self, refused: Refused) -> None:
        """Remember a row that is sent, and refused unless the file counts degrees in another way."""
        self.doubtful += 1
        if len(self.doubtful_rows) < DOUBTFUL_KEPT:
            self.doubtful_rows[refused.row] = refused._replace(unless=None)


def _copy(
    connection: db.Connection,
    reader: Reader,
    rules: Rules,
    rejects: Rejects,
    summary: FileSummary,
    reporter: Reporter,
) -> Sent:
    """Send the good rows to the staging table."""
    done, total = 0, summary.path.stat().st_size
    reporter.stage(f"reading {summary.path.name}", total)
    form = copy_format(reader)
    conversion = _Conversion(form, rules, rejects)
    with (
        connection.cursor() as cursor,
        cursor.copy(f"{COPY} {form.options}") as copy,
        ThreadPoolExecutor(1) as sender,  # the server takes a block while the next one is made
    ):
        sending = sender.submit(copy.write, form.begin)
        for block in reader.blocks:
            data = conversion.to_copy(block)
            sending.result()
            sending = sender.submit(copy.write, data)
            summary.rows += len(block)
            if not conversion.sent.rows and rejects.reasons.total() >= HOPELESS:
                reason = f"{rejects.first}. The rest of the file was not read"
                raise TooManyRejects(
                    path=summary.path, rows=rejects.reasons.total(), reason=reason, rejects=rejects.path
                )
            reporter.advance(reader.bytes_done() - done)
            done = reader.bytes_done()
        sending.result()
        copy.write(form.end)
    reporter.advance(total - done)  # a PBF file reports no position before its end
    left_out = conversion.left_out
    summary.left_out, summary.filtered = dict(left_out.most_common()), left_out.total()
    return conversion.sent


class _Conversion:
    """Turns blocks of rows into COPY data. Rows that cannot be used are set aside, and rows that nobody wants are counted."""

    def __init__(self, form: CopyFormat, rules: Rules, rejects: Rejects) -> None:
        self.form, self.rules, self.rejects = form, rules, rejects
        self.sent = Sent()
        self.left_out: Counter[str] = Counter()

    def to_copy(self, block: Block | Rows) -> str | bytes:
        rules = self.rules
        if not isinstance(block, Block):
            return self._row_by_row(rules.place_of(row) if isinstance(row, Record) else row for row in block)
        block, counts = rules.prepare(block)
        self.left_out += counts
        data = self.form.of_block(block, rules)
        if data is None:
            return self._row_by_row(map(rules.place, block.records()))
        self.sent.add(len(block), 0 if rules.columns.category else len(block))
        return data

    def _row_by_row(self, found: Iterable[Place | Refused | LeftOut]) -> str | bytes:
        places = self._places(found)
        self.sent.add_places(places)
        return self.form.of_places(places)

    def _places(self, found: Iterable[Place | Refused | LeftOut]) -> list[Place]:
        """The rows to send; the others are counted or set aside."""
        places = []
        for place in found:
            if isinstance(place, Place):
                places.append(place)
            elif isinstance(place, LeftOut):
                self.left_out[place.reason] += 1
            elif place.unless is not None:
                places.append(place.unless)
                self.sent.add_doubtful(place)
            else:
                self.rejects.add(place)
        return places


def _place(connection: db.Connection, srid: int) -> None:
    """Turn shapes and projected coordinates into longitude and latitude."""
    connection.execute(connection.named(TO_POINT))
    connection.execute(connection.named(PLACE), {"srid": srid})
    connection.execute("DROP FUNCTION pg_temp.callipper_point")


def _refuse(connection: db.Connection, rejects: Rejects, as_read: Mapping[int, Refused]) -> int:
    """Set aside the rows that have no place on the globe; returns how many. as_read: what some of them are in the file."""
    refused = connection.execute(REFUSE, [CONTENT_LIMIT]).fetchall()
    for row, x, y, content in sorted(refused, key=lambda found: found[0]):
        reason = BAD_GEOMETRY if x is None or y is None else out_of_range(x, y)
        rejects.add(as_read.get(row) or Refused(row, reason, content))
    return len(refused)


def _is_rejects(path: Path) -> bool:
    """Did an earlier run write this file?"""
    if not path.is_file():
        return False
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.readline(100).rstrip("\n") in {",".join(REJECTS_HEADER), ""}


def _file_dict(file: FileSummary) -> dict[str, Any]:
    paths = {"path": str(file.path), "rejects": str(file.rejects) if file.rejects else None}
    more = {name: getattr(file, name) for name in ("reasons", "left_out", "without_category", "notes")}
    return {count: getattr(file, count) for count in COUNTS} | more | paths
