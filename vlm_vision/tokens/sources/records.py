"""Rows of `.csv`, `.tsv`, `.jsonl` and `.json` files, one at a time."""

import csv
import io
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

Numbered = tuple[str, dict[str, Any]]
"""Place of a record, for an error, and the record."""

PIECE = 1 << 16
"""Bytes that are read at once of a JSON list."""


def records(path: str, file: BinaryIO) -> Iterator[Numbered]:
    """The rows of a file by the suffix of `path`, from the beginning of `file`.

    Raises:
        ValueError: a row that cannot be read; it names the line.
    """
    file.seek(0)
    text = io.TextIOWrapper(file, "utf-8-sig", newline="")
    suffix = path.rpartition(".")[2].lower()
    try:
        if suffix == "jsonl":
            yield from _lines(path, text)
        elif suffix == "json":
            yield from _list(path, text)
        else:
            yield from _rows(path, text, "\t" if suffix == "tsv" else ",")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 ({error}): write it again") from None
    finally:
        text.detach()


def _rows(path: str, text: io.TextIOWrapper, delimiter: str) -> Iterator[Numbered]:
    reader = csv.reader(text, delimiter=delimiter)
    try:
        header = next(reader, [])
        if twice := [name for name in header if header.count(name) > 1]:
            raise ValueError(f"{path} has the column {twice[0]!r} twice: rename one")
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if row and len(row) != len(header):
                raise ValueError(f"{where}, has {len(row)} fields, expected {len(header)}: {', '.join(header)}")
            if row:
                yield where, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}, is not a row of a table ({error}): write it again") from None


def _lines(path: str, text: io.TextIOWrapper) -> Iterator[Numbered]:
    for number, line in enumerate(text, start=1):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{where}, is not valid JSON ({error}): expected a record") from None
            yield where, _checked(record, where)


def _list(path: str, text: io.TextIOWrapper) -> Iterator[Numbered]:
    """The records of a JSON list, which is read in pieces."""
    decoder, held, number, piece, expected = json.JSONDecoder(), "", 0, PIECE, "["
    while True:
        held = held.lstrip(" \t\r\n")
        if held and expected:
            if held[0] == "]" and expected == ",":
                return
            if held[0] != expected:
                raise ValueError(f"{path} is no JSON list of records: {expected} is missing after {number} of them")
            held, expected = held[1:], ""
            continue
        if held and not expected:
            if held[0] == "]" and not number:
                return
            where = f"{path}, record {number + 1}"
            try:
                record, end = decoder.raw_decode(held)
            except RecursionError as error:
                raise ValueError(f"{where}, is not valid JSON ({error}): expected a record") from None
            except ValueError as error:
                reason = error
            else:
                yield where, _checked(record, where)
                held, number, expected, piece = held[end:], number + 1, ",", PIECE
                continue
        else:
            reason = ValueError("it ends too early")
        more = text.read(piece)
        if not more:
            raise ValueError(f"{path} is not valid JSON after {number} records ({reason}): write or download it again")
        held, piece = held + more, 2 * piece


def _checked(record: Any, where: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise ValueError(f"{where}, is not a record: expected {{...}} with an image")
    return record
