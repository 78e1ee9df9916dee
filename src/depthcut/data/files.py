"""Text of your own: any text, jsonl or parquet files."""

import glob
import json
from collections.abc import Iterator
from pathlib import Path

from typing_extensions import override

from depthcut import store
from depthcut.data import Source
from depthcut.runtime.errors import UserError
from depthcut.runtime.paths import PathText
from depthcut.strict import strict

FORMAT = 1


@strict
class Files(Source):
    """The documents of files, in the order of the files.

    Attributes:
        paths: files or patterns (``corpus/*.jsonl``, ``**`` for folders within folders); .txt (also
            .raw and .tokens, as WikiText's are called), .jsonl or .parquet.
        field: which field of a jsonl line, or column of a parquet file, holds the text.
        divider: what stands between documents in a .txt file; None: a file is one document.
    """

    paths: list[PathText]
    field: str
    divider: str | None

    @override
    def documents(self, cache: Path) -> Iterator[str]:
        for file in matches(self.paths):
            empty = True
            for text in self.texts(file):
                empty = False
                if self.covers(text):
                    yield text
            if empty:
                raise UserError(f"{file} holds no text")

    @override
    def identity(self, cache: Path) -> str:
        hashes = [store.sha256(file) for file in matches(self.paths)]
        reading = [self.field, self.divider, self.span]
        return store.digest({"files": FORMAT, "content": hashes, "reading": reading})

    def texts(self, file: Path) -> Iterator[str]:
        """All documents of one file, empty ones left out."""
        match file.suffix:
            case ".txt" | ".raw" | ".tokens":
                found = txt(file, self.divider)
            case ".jsonl":
                found = jsonl(file, self.field)
            case ".parquet":
                found = parquet(file, self.field)
            case suffix:
                raise UserError(f"{file}: no way to read {suffix or 'a file without suffix'}; .txt, .jsonl or .parquet")
        return (text for text in found if text.strip())


def matches(paths: list[str]) -> list[Path]:
    """The files that paths and patterns name, each once; a pattern's in the order of their names.

    Raises:
        UserError: for a path or pattern that matches no file, and for a folder.
    """
    found: list[str] = []
    for path in paths:
        names = [path] if Path(path).exists() else sorted(glob.glob(path, recursive=True))  # noqa: PTH207
        if not names:
            raise UserError(f"no file at {path} (seen from {Path.cwd()})")
        found += names
    files = [Path(name) for name in dict.fromkeys(found)]
    if not files:
        raise UserError("data=files needs files: data.train.paths=[corpus.txt]")
    for file in files:
        if file.is_dir():
            raise UserError(f"{file} is a folder; name its files, e.g. {file}/*.jsonl")
    return files


def decoded(data: bytes, file: Path, offset: int = 0) -> str:
    """UTF-8 as text, or an error that names the file and the byte (``offset``: where ``data`` starts in the file)."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        where = offset + error.start
        raise UserError(f"{file} is not UTF-8: byte {where} is 0x{data[error.start]:02x}; convert it first") from None


def txt(file: Path, divider: str | None) -> Iterator[str]:
    """The documents of a text file."""
    text = decoded(file.read_bytes(), file).removeprefix("\ufeff").replace("\r\n", "\n")
    yield from text.split(divider) if divider else [text]


def jsonl(file: Path, field: str) -> Iterator[str]:
    """The documents of a file of one JSON object a line, read line by line."""
    offset = 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            text = decoded(line, file, offset)
            offset += len(line)
            if text.strip():
                yield text_of(text, field, f"{file}, line {number}")


def text_of(line: str, field: str, where: str) -> str:
    """The text in one line of JSON."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is no JSON: {error.msg} at character {error.pos}") from None
    if not isinstance(row, dict):
        raise UserError(f"{where} is no JSON object")
    if not isinstance(row.get(field), str):
        raise UserError(f"{where} has no text in a field `{field}`; there are: {', '.join(row) or 'none'}")
    return row[field]


def parquet(file: Path, column: str) -> Iterator[str]:
    """The documents of a parquet file, read in batches."""
    import pyarrow
    from pyarrow import parquet as pq

    try:
        table = pq.ParquetFile(file)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(f"{file} is no parquet file: {error}") from None
    with table:
        schema = table.schema_arrow
        if column not in schema.names:
            raise UserError(f"{file} has no column `{column}`; there are: {', '.join(schema.names)}")
        kind = schema.field(column).type
        if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
            raise UserError(f"{file}: column `{column}` holds {kind}, not text")
        for batch in table.iter_batches(batch_size=1024, columns=[column]):
            yield from (text for text in batch.column(0).to_pylist() if text is not None)
