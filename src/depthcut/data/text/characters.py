"""The characters of a text file, decompressed and decoded in chunks."""

import codecs
import gzip
import itertools
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from depthcut.runtime.errors import UserError

COMPRESSED = frozenset({".gz", ".zst"})
CHUNK = 1 << 20
"""Bytes read at once."""


def read_characters(file: Path) -> Iterator[str]:
    """Yield the text of a UTF-8 file in pieces, without a byte order mark, with line ends as ``\\n``.

    A lone carriage return ends a line only if the first piece that has any contains no ``\\n`` (old Macs).
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, kept, mac = 0, "", None
    for data in itertools.chain(read_chunks(file), [b""]):
        waiting = decoder.getstate()[0]
        try:
            text = kept + decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            where = offset - len(waiting) + error.start
            byte = error.object[error.start]
            raise UserError(f"{file} is not UTF-8: byte {where} is 0x{byte:02x}; convert it first") from None
        text = text if offset else text.removeprefix("\ufeff")
        offset += len(data)
        kept = "\r" if data and text.endswith("\r") else ""
        text = text.removesuffix(kept)
        if mac is None and ("\r" in text or "\n" in text):
            mac = "\n" not in text
        yield text.replace("\r\n", "\n").replace("\r", "\n" if mac else "\r")


def read_chunks(file: Path) -> Iterator[bytes]:
    """Yield the bytes of a file, decompressed.

    Raises:
        UserError: if a compressed file is damaged.
    """
    try:
        with open_decompressed(file) as source:
            while data := source.read(CHUNK):
                yield data
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{file} is truncated or damaged ({error}); create or download it again") from None
    except OSError as error:
        if file.suffix not in COMPRESSED or error.errno is not None:
            raise
        raise UserError(f"{file} is truncated or damaged ({error}); create or download it again") from None


def open_decompressed(file: Path) -> IO[bytes]:
    """Open a file for reading; ``.gz`` and ``.zst`` files are decompressed."""
    if file.suffix == ".gz":
        return gzip.open(file)  # pyright: ignore[reportReturnType]
    if file.suffix == ".zst":
        import pyarrow

        return pyarrow.input_stream(str(file), compression="zstd")  # pyright: ignore[reportReturnType]
    return file.open("rb")


def replace_surrogates(text: str) -> str:
    """Replace each lone surrogate, which no tokenizer accepts, by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
