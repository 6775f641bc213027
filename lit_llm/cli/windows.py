"""Windows of shards in the terminal: a table of many, or one with its documents and their text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lit_llm.config.notices import with_pictures

if TYPE_CHECKING:
    from lit_llm.config import InspectConfig
    from lit_llm.data.corpus.provenance import DocumentPart
    from lit_llm.stages.inspect_data import Inspection

_BEGINNING = 60
"""Characters that the list of a batch shows of each window."""


def show_windows(config: InspectConfig, found: Inspection) -> None:
    """Print the list of windows, or the one that there is."""
    print(found.title)
    is_list = config.run is not None and config.row is None
    for row, window in enumerate(found.windows):
        number = f"row {row}, " if is_list else "" if config.row is None else f"row {config.row}, "
        print(f"\n{number}{window.name}\n  {window.place}")
        parts = window.documents()
        for part in parts:
            print(f"  {with_pictures(_about(part))}")
            text = with_pictures(window.text(part, found.tokenizer))
            if not is_list:
                print("\n".join(f"    | {line}" for line in _cut(text, config.characters).split("\n")))
        if is_list:
            text = with_pictures(window.text(parts[0], found.tokenizer))
            print(f"    | {' '.join(text.split())[:_BEGINNING]}")
    if is_list:
        print("\n--row N shows the text of a row")


def _about(part: DocumentPart) -> str:
    what = {(True, True): "all", (True, False): "beginning", (False, True): "end", (False, False): "a part"}
    origin = "a document that the shards do not name" if part.origin is None else str(part.origin)
    last = part.start + part.tokens - 1
    return f"tokens {part.start:,} to {last:,}: {origin} ({what[part.begins, part.ends]} of it)"


def _cut(text: str, characters: int | None) -> str:
    if characters is None or len(text) <= characters:
        return text
    return f"{text[:characters]}\n... {len(text) - characters:,} more characters; --characters null shows them"
