"""Documents of text, JSON lines and parquet files, read in pieces, because a file may not fit in memory."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from depthcut.data.text import limits
from depthcut.data.text.characters import COMPRESSED, read_characters, replace_surrogates
from depthcut.runtime.errors import UserError

TEXT = frozenset({".txt", ".raw", ".tokens"})
JSON = frozenset({".jsonl", ".json"})
READABLE = ".txt, .jsonl or .parquet; .txt and .jsonl also as .gz or .zst"


def text_format(file: Path) -> str:
    """Return the suffix that sets the format of a file, such as ``.jsonl`` for ``a.jsonl.gz``.

    Raises:
        UserError: for an unsupported file.
    """
    packed = file.suffix in COMPRESSED
    suffix = Path(file.stem).suffix if packed else file.suffix
    if suffix in TEXT | JSON or (suffix == ".parquet" and not packed):
        return suffix
    raise UserError(f"{file}: cannot read {file.suffix or 'a file without suffix'}, only {READABLE}")


def read_documents(file: Path, field: str, divider: str | None) -> Iterator[str]:
    """Yield the documents of a file, except for empty ones.

    Args:
        file: a text, JSON lines or parquet file.
        field: field of a JSON line, or column of a parquet file, that holds the text.
        divider: separator between the documents of a text file; None: the file is one document.

    Raises:
        UserError: in one line that names the file and the line or row.
    """
    match text_format(file):
        case suffix if suffix in TEXT:
            found = split_documents(read_characters(file), divider, file)
        case ".parquet":
            from depthcut.data.text import parquet

            found = parquet.read_column(file, field)
        case _:
            found = read_json_lines(file, field)
    return (text for text in found if text.strip())


def split_documents(pieces: Iterable[str], divider: str | None, file: Path) -> Iterator[str]:
    """Split text that arrives in pieces at ``divider``, as :meth:`str.split` would split the whole text.

    Raises:
        UserError: for a document longer than ``limits.LONGEST``.
    """
    rest = ""
    for piece in pieces:
        rest += piece
        if divider:
            *whole, rest = rest.split(divider)
            yield from whole
        if len(rest) > limits.LONGEST:
            raise limits.too_long_error(file, f"set divider to the text between its documents (now {divider!r})")
    yield rest


def read_json_lines(file: Path, field: str) -> Iterator[str]:
    """Yield the text of each line of a JSON lines file; nulls are skipped."""
    nulls = 0
    try:
        for number, line in enumerate(read_lines(file), 1):
            if line.strip():
                text = parse_jsonl_line(line, field, f"{file}, line {number}")
                nulls += text is None
                if text is not None:
                    yield replace_surrogates(limits.require_bounded(text, f"{file}, line {number}"))
    finally:
        limits.log_skipped_nulls(file, field, nulls)


def read_lines(file: Path) -> Iterator[str]:
    """Yield the lines of a text file.

    Raises:
        UserError: for a line longer than ``limits.LONGEST``.
    """
    rest, number = "", 1
    for piece in read_characters(file):
        *whole, rest = (rest + piece).split("\n")
        yield from whole
        number += len(whole)
        if len(rest) > limits.LONGEST:
            raise limits.too_long_error(f"{file}, line {number}", "write one document per line")
    yield rest


def parse_jsonl_line(line: str, field: str, where: str) -> str | None:
    """Return the text in one line of JSON, None for a null."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not JSON: {error.msg} at character {error.pos}") from None
    except (ValueError, RecursionError) as error:  # integers of thousands of digits; deep nesting
        raise UserError(f"{where} cannot be parsed as JSON: {str(error).partition(';')[0]}") from None
    if isinstance(row, list):
        raise UserError(f'{where} is a list, not a JSON object; write one object per line, such as {{"{field}": ...}}')
    if not isinstance(row, dict):
        raise UserError(f"{where} is not a JSON object")
    if field in row and row[field] is None:
        return None
    if field in row and not isinstance(row[field], str):
        raise UserError(f"{where}: field `{field}` is {type(row[field]).__name__}, not text")
    if field not in row:
        raise UserError(f"{where} has no field `{field}`; its fields: {', '.join(row) or 'none'}")
    return row[field]
