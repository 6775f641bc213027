"""The prefix cache keeps what was computed of texts, so that a text that begins like an earlier one is not read again.

Texts are cut into pages of a fixed number of tokens. A page is found by the page before it and its own tokens, so that
a chain of them stands for one beginning and no other; whichever beginnings two texts share, they share the pages of it.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from lit_llm.config import UserError
from lit_llm.model import Decoder, KVCache
from lit_llm.model.pages import PageMemory, page_bytes, ring_spare

PAGE_TOKENS = 16
"""Tokens of a page; less than a whole page is read again."""
MIB = 2**20
# What Python keeps of a page besides its keys and values, in bytes: the page, its tokens, its places in two tables.
_BOOKKEEPING = 1024


@dataclass(eq=False, slots=True)
class Page:
    """A page in memory, and how many running texts use it."""

    number: int
    key: tuple[Hashable, bytes]
    users: int = 0


@dataclass(frozen=True)
class PrefixCounts:
    """What a prefix cache has done since it was made, and what it holds now."""

    requests: int
    """Texts that were begun."""
    hits: int
    """Those of them whose beginning did not have to be read, or not all of it."""
    prompt_tokens: int
    """Tokens of all prompts."""
    cached_tokens: int
    """Those of them that were not read: they came from pages, or from a text that was running."""
    pages: int
    """Pages that are held now."""
    most_pages: int
    """Pages that there is room for."""
    pages_in_use: int
    """Pages that running texts began with or wrote; they stay until the last of these has ended."""
    evictions: int
    """Pages that had to make room for others."""
    page_tokens: int
    """Tokens of a page."""
    page_bytes: int
    """Memory of a page."""


class PrefixCache:
    """Pages of the texts that engines of one model have read and written, bounded in memory.

    When there is no room, the page goes that has not been used for longest, and of a text its last pages first. What a
    running text uses stays. To be used by one engine at a time; `counts` may be called from any thread.

    Args:
        model: the decoder; after a change of its weights `clear` forgets what they gave.
        mib: memory in MiB that pages may take.
        page_tokens: tokens of a page.

    Raises:
        UserError: there is no room for a page, or not so much memory.
    """

    def __init__(self, model: Decoder, mib: float, *, page_tokens: int = PAGE_TOKENS) -> None:
        model.config.check_gives_text("the model")
        weight = model.embedding.weight
        self.model, self.page_tokens = model, page_tokens
        self.page_bytes = _bytes_of_page(model, page_tokens)
        self.most_pages = int(mib * MIB) // self.page_bytes
        if self.most_pages < 1:
            raise UserError(
                f"a prefix cache of {mib:g} MiB has no room for a page of {page_tokens} tokens, which takes "
                f"{self.page_bytes / MIB:.2f} MiB; give it more, or 0 to do without"
            )
        try:
            self._memory = PageMemory(
                model.config,
                self.most_pages,
                page_tokens,
                tensor_parallel_size=model.tensor_parallel_size,
                device=weight.device,
                dtype=weight.dtype,
            )
        except RuntimeError as error:  # what torch raises where memory ends, on every device
            raise UserError(f"a prefix cache of {mib:g} MiB cannot be had ({error}); give it less, or 0") from error
        self._pages: dict[tuple[Hashable, bytes], Page] = {}
        self._vacant = list(range(self.most_pages - 1, -1, -1))
        # Those without users, the one that was used longest ago first. As texts let go of their last page first, a
        # page comes after all that follow it, so that the first one is always the end of a text.
        self._idle: OrderedDict[Page, None] = OrderedDict()
        self._requests = self._hits = self._prompt_tokens = self._cached_tokens = self._evictions = 0

    @staticmethod
    def mib_for(model: Decoder, tokens: int, page_tokens: int = PAGE_TOKENS) -> float:
        """Compute the memory in MiB that pages for so many tokens of a text take."""
        return -(-tokens // page_tokens) * _bytes_of_page(model, page_tokens) / MIB

    @property
    def spare(self) -> int:
        """Tokens that a ring needs besides its window, so that pages can be taken from it; see `KVCache`."""
        return ring_spare(self.model.config, self.page_tokens)

    def reach(self, read: int, cache: KVCache) -> int:
        """Return how far a text of which `read` tokens are read may be read at once so that no page of it is lost: up
        to where a ring would begin to overwrite the page that is not whole yet."""
        return read // self.page_tokens * self.page_tokens + cache.least_capacity

    def find(self, namespace: Hashable, context: Sequence[int], most: int) -> list[Page]:
        """Return the pages of the longest beginning of a text that is held, of up to `most` tokens."""
        found: list[Page] = []
        while (len(found) + 1) * self.page_tokens <= most:
            page = self._pages.get(self._next_key(found, namespace, context))
            if page is None:
                break
            found.append(page)
        return found

    def use(self, pages: Sequence[Page]) -> None:
        """Keep pages until they are released."""
        for page in pages:
            if not page.users:
                self._idle.pop(page, None)
            page.users += 1

    def release(self, pages: list[Page]) -> None:
        """Let go of the pages of a text, which is to have none afterwards."""
        while pages:
            page = pages.pop()
            page.users -= 1
            if not page.users:
                self._idle[page] = None

    def load(self, pages: Sequence[Page], cache: KVCache, row: int, last_token: int) -> None:
        """Make a row of an engine's cache the beginning that `pages` hold; `last_token` is the last of it."""
        self._memory.load([page.number for page in pages], cache, row, last_token)

    def keep(self, pages: list[Page], namespace: Hashable, context: Sequence[int], cache: KVCache, row: int) -> None:
        """Add to the pages of a text, which it uses, those that have become whole.

        Where all pages are in use, or a ring has forgotten what would be needed, the text has no more of them.

        Args:
            pages: of the text so far, from its beginning on; those that are added are used from now on.
            namespace: texts of different ones share nothing.
            context: the text.
            cache: the engine's cache.
            row: the row that holds the text.
        """
        while (len(pages) + 1) * self.page_tokens <= cache.lengths[row]:
            key = self._next_key(pages, namespace, context)
            page = self._pages.get(key)
            if page is None:
                place = len(pages)
                if cache.first_held(row) > place * self.page_tokens or not self._has_vacancy():
                    return
                self._memory.save(self._vacant[-1], cache, row, place)
                page = self._pages[key] = Page(self._vacant.pop(), key)
            self.use([page])
            pages.append(page)

    def count(self, prompt_tokens: int, cached_tokens: int) -> None:
        """Count a text that begins."""
        self._requests += 1
        self._hits += cached_tokens > 0
        self._prompt_tokens += prompt_tokens
        self._cached_tokens += cached_tokens

    def counts(self) -> PrefixCounts:
        """Return what was done so far, and what is held."""
        held, idle = len(self._pages), len(self._idle)
        return PrefixCounts(
            requests=self._requests,
            hits=self._hits,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            pages=held,
            most_pages=self.most_pages,
            pages_in_use=max(0, held - idle),
            evictions=self._evictions,
            page_tokens=self.page_tokens,
            page_bytes=self.page_bytes,
        )

    def clear(self) -> None:
        """Forget all pages; to be called while no text runs."""
        while self._idle:
            self._drop_oldest()

    def _next_key(self, pages: Sequence[Page], namespace: Hashable, context: Sequence[int]) -> tuple[Hashable, bytes]:
        """The key of the page that follows `pages`. Its number stands for the page before: it is not given to another
        page as long as any follows it."""
        begin = len(pages) * self.page_tokens
        tokens = array("i", context[begin : begin + self.page_tokens]).tobytes()
        return (pages[-1].number if pages else (namespace,)), tokens

    def _has_vacancy(self) -> bool:
        if not self._vacant and self._idle:
            self._drop_oldest()
            self._evictions += 1
        return bool(self._vacant)

    def _drop_oldest(self) -> None:
        page, _ = self._idle.popitem(last=False)
        del self._pages[page.key]
        self._vacant.append(page.number)


def _bytes_of_page(model: Decoder, page_tokens: int) -> int:
    dtype = model.embedding.weight.dtype
    return page_bytes(model.config, page_tokens, dtype, model.tensor_parallel_size) + _BOOKKEEPING
