"""Text, jsonl or parquet files of your own."""

import glob
import stat
from collections.abc import Iterator
from pathlib import Path

from typing_extensions import override

from depthcut.data import Source
from depthcut.data.text import characters, documents
from depthcut.runtime import store
from depthcut.runtime.errors import UserError
from depthcut.runtime.paths import PathText
from depthcut.runtime.strict import strict

FORMAT = 1


@strict
class Files(Source):
    """The documents of files, in the order of the files.

    Attributes:
        paths: files or glob patterns (``corpus/*.jsonl``, ``**`` for nested folders); .txt (also .raw and .tokens, as
            in WikiText), .jsonl or .parquet; text and jsonl also as .gz or .zst.
        field: field of a jsonl line, or column of a parquet file, that holds the text.
        divider: separator between documents in a .txt file; None: a file is one document.
    """

    paths: list[PathText]
    field: str
    divider: str | None

    @override
    def documents(self, cache: Path) -> Iterator[str]:
        seen = inside = 0
        for file in matching_files(self.paths):
            before = seen
            for text in documents.read_documents(file, self.field, self.divider):
                seen += 1
                if self.covers(text):
                    inside += 1
                    yield text
            if seen == before:
                raise UserError(f"{file} contains no text")
        if not inside:
            raise UserError(self.outside(seen))

    def outside(self, count: int) -> str:
        """Return why no document is inside the span."""
        if count > 1:
            return f"none of the {count} documents of {', '.join(self.paths)} is in the span {list(self.span)}"
        remedy = (
            f"set divider to the text between its documents (now {self.divider!r}), or use other files for this part"
        )
        return f"{self.paths[0]} is one document, which is not in the span {list(self.span)}: {remedy}"

    @override
    def content(self, cache: Path) -> dict[str, str]:
        return {str(file): store.file_sha256(file) for file in matching_files(self.paths)}

    @override
    def named(self, content: dict[str, str]) -> str:
        hashes = [sha256 + packing(Path(file)) for file, sha256 in content.items()]
        reading = [self.field, self.divider, self.span]
        return store.content_digest({"files": FORMAT, "content": hashes, "reading": reading})


def packing(file: Path) -> str:
    """Return the suffixes of a compressed file, because its bytes can be read in several ways."""
    return "".join(file.suffixes[-2:]) if file.suffix in characters.COMPRESSED else ""


def matching_files(paths: list[str]) -> list[Path]:
    """Return the files that paths and patterns match, each once; matches of a pattern are sorted by name.

    Raises:
        UserError: for a path or pattern without a match, a folder, or a file that is not regular: a device or a pipe
            may never end.
    """
    found: list[str] = []
    for path in paths:
        names = [path] if Path(path).exists() else sorted(glob.glob(path, recursive=True))  # noqa: PTH207
        if not names:
            raise UserError(f"no file at {path} (relative to {Path.cwd()})")
        found += names
    files = [Path(name) for name in dict.fromkeys(found)]
    if not files:
        raise UserError("data=files needs files: data.train.paths=[corpus.txt]")
    for file in files:
        if file.is_dir():
            raise UserError(f"{file} is a folder; name its files, e.g. {file}/*.jsonl")
        if not stat.S_ISREG(file.stat().st_mode):
            raise UserError(f"{file} is a device, pipe or socket, not a regular file; copy its text into a file")
    return files
