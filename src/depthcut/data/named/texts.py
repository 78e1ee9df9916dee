"""Texts measured in addition to ``data.validation``, from files, the hub or the demo corpus."""

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Annotated, Any

from pydantic import Strict, ValidationError

from depthcut.data import Source
from depthcut.data.text.limits import LONGEST
from depthcut.runtime.errors import UserError
from depthcut.runtime.paths import PathText
from depthcut.runtime.strict import strict

CONFIG_PATH = "eval.perplexity.texts"


@strict
class NamedText:
    """A text by name. Its keys are optional.

    Attributes:
        paths: files or patterns, as for ``data=files``; they take precedence over ``dataset``.
        divider: separator between documents in a .txt file; None: a file is one document.
        dataset: name on the hub, or a folder, as for ``data/train=hub``.
        config: configuration of the data set.
        split: split of the data set.
        revision: commit of the data set; None: the newest.
        field: field or column that holds the text.
        span: share of the documents by their hashes; None: all. Without ``paths`` and ``dataset`` it selects the demo
            corpus.
    """

    paths: list[PathText] | None = None
    divider: str | None = None
    dataset: str | None = None
    config: str | None = None
    split: str = "test"
    revision: str | None = None
    field: str = "text"
    span: Annotated[tuple[float, float] | None, Strict(False)] = None

    def source(self, length: int) -> Source:
        """Return the source of the text.

        Raises:
            UserError: if no key names one.
        """
        from depthcut.data.demo import Demo
        from depthcut.data.files import Files
        from depthcut.data.hub import Hub

        shape: dict[str, Any] = {"span": self.span or (0.0, 1.0), "sequences": None, "length": length, "pack": True}
        if self.paths is not None:
            return Files(paths=self.paths, field=self.field, divider=self.divider, **shape)
        if self.dataset is not None:
            hub = {"config": self.config, "split": self.split, "field": self.field, "revision": self.revision}
            return Hub(dataset=self.dataset, **hub, **shape)  # pyright: ignore[reportArgumentType]
        if self.span is None:
            raise UserError("set its paths, its dataset, or a span of the demo corpus such as [0.95,1.0]")
        return Demo(**shape)


def named_text_source(name: str, given: dict[str, Any], length: int) -> Source:
    """Return the source of the text ``name`` with the options ``given``.

    Raises:
        UserError: in one line, for an invalid key or value.
    """
    from depthcut.runtime import validation

    kind: type[Any] = NamedText
    try:
        text = NamedText(**given)
        kind = Source
        with prefix_errors(name):
            return text.source(length)
    except ValidationError as error:
        raise UserError(validation.describe_validation_error(f"{CONFIG_PATH}.{name}", kind, error)) from error


def limit_characters(documents: Iterable[str], characters: int | None) -> Generator[str]:
    """Yield documents until they have so many characters; None: all.

    Raises:
        UserError: for more text than can be tokenised at once.
    """
    size = 0
    for each in documents:
        yield each
        size += len(each)
        if size > LONGEST:
            raise UserError(
                f"the text has more than {LONGEST >> 20} million characters and is tokenised as a whole; "
                "set eval.perplexity.windows, e.g. 1000"
            )
        if characters is not None and size >= characters:
            return


@contextmanager
def prefix_errors(name: str) -> Generator[None]:
    """Prefix an error with the config path of the text."""
    try:
        yield
    except UserError as error:
        said = str(error).replace(
            "choose other data, e.g. data=demo", f"set its files: {CONFIG_PATH}.{name}.paths=[...]"
        )
        raise UserError(f"{CONFIG_PATH}.{name}: {said}") from error
