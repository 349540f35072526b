"""Tables of text as the data sets have them: tab-separated, comma-separated, JSON lines; row by row, never guessing.

Every row comes with its number in the file, the first line's being 1, so that a message can name it. Nothing is taken
for a missing value: `null`, `n/a` and `NaN` are words. A byte-order mark is no part of the text.
"""

import csv
import json
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from formats.errors import BadInput, MissingInput, warn_once
from formats.files import LFS_POINTER

__all__ = ["Table", "lines_of", "number_of", "open_csv", "open_tsv", "read_jsonl", "require_text", "shown"]

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Table(NamedTuple):
    """A file of rows of equal width that is being read.

    Attributes:
        path: the file, for messages.
        header: the names of the columns; None: the file has no header.
        rows: iterator of (number of the row, list of its fields), which raises BadInput at a row that is wrong.
    """

    path: str
    header: list[str] | None
    rows: Iterator[tuple[int, list[str]]]

    def places(self, names: list[str]) -> list[int]:
        """Return where the columns of these names are.

        Raises:
            BadInput: one of them is missing, or is there twice.
        """
        missing = [name for name in names if name not in self.header]
        if missing:
            raise BadInput(f"{self.path}: row 1 (header) lacks the column {', '.join(missing)}; found "
                           f"{shown(', '.join(self.header), 150)}; expected {', '.join(names)}")
        twice = next((name for name in names if self.header.count(name) > 1), None)
        if twice is not None:
            raise BadInput(f"{self.path}: row 1 (header) has the column {twice} {self.header.count(twice)} times; "
                           "which one counts? rename or remove the others")
        return [self.header.index(name) for name in names]


def shown(value: object, length: int = 40) -> str:
    """Return how a value is shown in a message: quoted, in one line, cut."""
    return ascii(value[:length]) if isinstance(value, str) else ascii(value)[:length]


def lines_of(path: str) -> Iterator[tuple[int, str]]:
    """Yield (number, text) of each line of a UTF-8 file, the first being 1.

    Lines end in a line feed, or in carriage return and line feed, and in nothing else: a form feed or U+2028 is a part
    of the text. Blank lines at the end of the file are left out.

    Raises:
        MissingInput: there is no such file.
        BadInput: it is empty, not UTF-8, or holds a NUL; the line's number.
    """
    if not os.path.isfile(path):
        found = "is a folder, expected a file" if os.path.isdir(path) else "not found"
        raise MissingInput(f"{path}: {found}; check the folder and the name")
    number, blank = 0, 0
    with open(path, "rb") as f:
        for number, line in enumerate(f, 1):
            if number == 1:
                if line.startswith(LFS_POINTER):
                    raise BadInput(f"{path}: holds no data but Git LFS's note on where they are; run `git lfs pull` "
                                   "where it came from")
                line = line.removeprefix(BYTE_ORDER_MARK)
            if b"\0" in line:
                raise BadInput(f"{path}: row {number} holds a NUL character; it is damaged, or not UTF-8; save it "
                               "as UTF-8")
            try:
                text = line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")
            except UnicodeDecodeError as error:
                raise BadInput(f"{path}: row {number} is not UTF-8 (it holds the byte 0x{line[error.start]:02x}); save "
                               "the file as UTF-8") from None
            if not text:
                blank += 1
                continue
            yield from ((number - i, "") for i in range(blank, 0, -1))
            blank = 0
            yield number, text
    if number == blank:
        raise BadInput(f"{path}: is empty; expected one example a row")


def open_tsv(path: str, header: bool = True, width: int | None = None, any_width: bool = False) -> Table:
    """Open a tab-separated file. Quotes are ordinary signs.

    Args:
        header: whether the first row names the columns.
        width: how many fields a row has; None: as many as the header, or the first row.
        any_width: let rows of another width through, for readers that skip them.
    Raises:
        MissingInput, BadInput: see lines_of; here for the header, and while the rows are read for them, also for a
            row of the wrong width.
    """
    lines = ((number, line.split("\t")) for number, line in lines_of(path))
    names = None
    if header:
        names = next(lines)[1]
        width = width or len(names)

    def rows(width):
        for number, fields in lines:
            width = width or len(fields)
            if len(fields) != width and not any_width:
                raise _wrong_width(path, number, fields, width, "as in the header" if header else "separated by tabs")
            yield number, fields

    return Table(path, names, rows(width))


def _wrong_width(path, number, fields, width, why):
    return BadInput(f"{path}: row {number} has {number_of(len(fields), 'field')}, expected {width} {why}; correct or "
                    "remove the row")


def number_of(n: int, what: str) -> str:
    """Return '1 row', '2 rows' and so on."""
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


def open_csv(path: str) -> Table:
    """Open a comma-separated file with a header; fields may be in double quotes, and then hold commas and line ends.

    Rows are counted, not lines, the header being row 1. Blank rows are skipped. A field holds up to csv's limit of
    131,072 characters.

    Raises:
        MissingInput, BadInput: absent; not CSV, not UTF-8, a row of the wrong width; the row.
    """
    if not os.path.isfile(path):
        raise MissingInput(f"{path}: not found; check the folder and the name")
    rows = _rows_of_csv(path)
    _, header = next(rows, (1, None))
    if header is None:
        raise BadInput(f"{path}: is empty; expected a header row and one example a row")

    def checked():
        commas = []  # numbers of the rows of nothing but commas, as spreadsheets write them at the end
        for number, fields in rows:
            if len(fields) > 1 and not any(map(str.strip, fields)):
                commas.append(number)
                continue
            if commas:
                raise BadInput(f"{path}: row {commas[0]} holds nothing but commas, and row {number} has text again; "
                               "correct or remove the row")
            if len(fields) != len(header):
                raise _wrong_width(path, number, fields, len(header), "as in the header")
            yield number, fields
        if commas:
            warn_once(f"{path}: {number_of(len(commas), 'row')} at its end with nothing but commas (from row "
                      f"{commas[0]} on); skipped")

    return Table(path, header, checked())


def _rows_of_csv(path):
    """Yield (number, fields) of each row that is not blank."""
    number = 0
    try:
        # undecodable bytes become lone surrogates, so that their row is known: decoding runs ahead of the rows
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as f:
            for number, fields in enumerate(csv.reader(f, strict=True), 1):
                text = "".join(fields)
                if byte := re.search("[\udc80-\udcff]", text):
                    raise BadInput(f"{path}: row {number} is not UTF-8 (it holds the byte "
                                   f"0x{ord(byte[0]) - 0xdc00:02x}); save the file as UTF-8")
                if "\0" in text:
                    raise BadInput(f"{path}: row {number} holds a NUL character; the file is damaged")
                if fields:
                    yield number, fields
    except csv.Error as error:
        raise BadInput(f"{path}: row {number + 1} is not CSV ({error}); expected fields separated by commas, quoted by "
                       "double quotes; a .tsv file has no quotes, a .jsonl file no limits") from None


def read_jsonl(path: str) -> Iterator[tuple[int, dict]]:
    """Yield (number of the row, object) of a file with one JSON object a line. Blank lines are skipped.

    Raises:
        MissingInput, BadInput: see lines_of; or a line is no JSON object; the row.
    """
    for number, line in lines_of(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = str(error)[:60] if isinstance(error, ValueError) else "nested too deeply"
            raise BadInput(f"{path}: row {number} is not JSON ({reason}); expected one JSON object a line") from None
        if not isinstance(record, dict):
            raise BadInput(f"{path}: row {number} is {shown(line)}, expected a JSON object with named fields")
        yield number, record


def require_text(path: str, number: int, record: dict, name: str) -> str:
    """Return the text in a field of a JSON object.

    Raises:
        BadInput: it is not there, no string, or no Unicode; the row.
    """
    if name not in record:
        found = shown(", ".join(map(str, record)), 150)
        raise BadInput(f"{path}: row {number} lacks the field {name!r}; found {found}")
    text = record[name]
    if not isinstance(text, str):
        raise BadInput(f"{path}: row {number} has {name} {shown(text)}, expected a text in quotes")
    if "\0" in text or re.search("[\ud800-\udfff]", text):
        raise BadInput(f"{path}: row {number} has a {name} with a NUL or half a character (a lone surrogate); correct "
                       "or remove the row")
    return text
