"""A text data set of the Hugging Face hub (or a folder laid out like one), streamed: nothing is downloaded whole."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from typing_extensions import override

from depthcut import store
from depthcut.data import Source
from depthcut.runtime.errors import UserError
from depthcut.strict import strict

FORMAT = 1


@strict
class Hub(Source):
    """The documents of one split, in the order of the split.

    Attributes:
        dataset: name on the hub, or a folder.
        config: which configuration of it; None for a data set that has just one.
        split: e.g. train or validation.
        field: which column holds the text.
        revision: commit of the data set; None: today's, looked up on the hub each time.
    """

    dataset: str
    config: str | None
    split: str
    field: str
    revision: str | None

    @override
    def documents(self, cache: Path) -> Iterator[str]:
        with self.readable():
            from datasets import load_dataset

            rows = iter(
                load_dataset(self.dataset, self.config, split=self.split, revision=self.revision, streaming=True)
            )
        while (row := self.row_after(rows)) is not None:
            if not isinstance(row.get(self.field), str):
                raise UserError(f"{self.name} has no text in a field `{self.field}`; there are: {', '.join(row)}")
            text = row[self.field]
            if text.strip() and self.covers(text):
                yield text

    @override
    def identity(self, cache: Path) -> str:
        reading = [self.config, self.split, self.field, self.span]
        return store.digest({"hub": FORMAT, "content": self.content(), "reading": reading})

    @property
    def name(self) -> str:
        """The split, as a person would name it."""
        return " ".join(filter(None, [self.dataset, self.config, self.split]))

    def content(self) -> list[str]:
        """What pins the data set's content: its commit on the hub, or the hashes of the folder's files."""
        folder = Path(self.dataset)
        if folder.is_dir():
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            return [f"{path.relative_to(folder)} {store.sha256(path)}" for path in files]
        if self.revision is not None:
            return [self.dataset, self.revision]
        with self.readable():
            from huggingface_hub import HfApi

            return [self.dataset, str(HfApi().dataset_info(self.dataset).sha)]

    def row_after(self, rows: Iterator[dict[str, Any]]) -> dict[str, Any] | None:
        """The next row, or None at the end."""
        with self.readable():
            return next(rows, None)

    @contextmanager
    def readable(self) -> Generator[None]:
        """Turn whatever the hub's libraries raise (a dozen kinds, by the way of failing) into one line."""
        try:
            yield
        except Exception as error:
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise UserError(
                f"could not read {self.name} ({reason.rstrip('.')}); connect, or choose other data, e.g. data=demo"
            ) from error
