"""A text data set of the Hugging Face hub (or a folder with the same layout), streamed instead of downloaded."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from typing_extensions import override

from depthcut.data import Source
from depthcut.data.text.characters import replace_surrogates
from depthcut.data.text.limits import log_skipped_nulls
from depthcut.runtime import store
from depthcut.runtime.errors import UserError
from depthcut.runtime.strict import strict

FORMAT = 1


@strict
class Hub(Source):
    """The documents of one split, in the order of the split.

    Attributes:
        dataset: name on the hub, or a folder.
        config: configuration of the data set; None if it has only one.
        split: such as train or validation.
        field: column that holds the text.
        revision: commit of the data set; None: the newest, looked up on the hub each time.
    """

    dataset: str
    config: str | None
    split: str
    field: str
    revision: str | None

    @property
    def hub_dataset(self) -> str:
        """Name of the data set on the hub, or a folder."""
        return self.dataset

    @override
    def documents(self, cache: Path) -> Iterator[str]:
        revision = None if Path(self.dataset).is_dir() else next(iter(self.content(cache).values()))
        with self.readable():
            from datasets import load_dataset

            rows = iter(load_dataset(self.dataset, self.config, split=self.split, revision=revision, streaming=True))
        nulls = 0
        while (row := self.row_after(rows)) is not None:
            if self.field in row and row[self.field] is None:
                nulls += 1
                continue
            if not isinstance(row.get(self.field), str):
                raise UserError(f"{self.name} has no field `{self.field}`; its fields: {', '.join(row)}")
            text = replace_surrogates(row[self.field])
            if text.strip() and self.covers(text):
                yield text
        log_skipped_nulls(self.name, self.field, nulls)

    @override
    def named(self, content: dict[str, str]) -> str:
        pins = [f"{name} {sha256}" for name, sha256 in content.items()]
        if not Path(self.dataset).is_dir():
            pins = [self.dataset, *content.values()]
        reading = [self.config, self.split, self.field, self.span]
        return store.content_digest({"hub": FORMAT, "content": pins, "reading": reading})

    @property
    def name(self) -> str:
        """Readable name of the split."""
        return " ".join(filter(None, [self.dataset, self.config, self.split]))

    @override
    def content(self, cache: Path) -> dict[str, str]:
        folder = Path(self.dataset)
        if folder.is_dir():
            return {str(path.relative_to(folder)): store.file_sha256(path) for path in list_regular_files(folder)}
        return {self.dataset: self.revision or self.head()}

    def head(self) -> str:
        """Return the newest commit of the data set on the hub."""
        with self.readable():
            from huggingface_hub import HfApi

            return str(HfApi().dataset_info(self.dataset).sha)

    def row_after(self, rows: Iterator[dict[str, Any]]) -> dict[str, Any] | None:
        """Return the next row, or None at the end."""
        with self.readable():
            return next(rows, None)

    @contextmanager
    def readable(self) -> Generator[None]:
        """Turn any exception of the hub's libraries (a dozen types) into an error of one line."""
        try:
            yield
        except Exception as error:
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise UserError(
                f"could not read {self.name} ({reason.rstrip('.')}); connect, or choose other data, e.g. data=demo"
            ) from error


def list_regular_files(folder: Path) -> list[Path]:
    """List the files of a folder and its sub-folders.

    Raises:
        UserError: for a device, a pipe or a socket, which may never end.
    """
    files = sorted(path for path in folder.rglob("*") if not path.is_dir())
    for path in files:
        if not path.is_file():
            raise UserError(f"{path} is not a regular file; remove it from the data set")
    return files
