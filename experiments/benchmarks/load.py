"""Requests sent to a server of OpenAI's /v1/completions as its users would, and what each of them saw."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

Body = dict[str, Any]
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


@dataclass
class Seen:
    """What a client saw of one request, in seconds from when it was sent."""

    first: float = 0.0
    last: float = 0.0
    tokens: int = 0
    text: str = ""
    lost: str | None = "it did not end"
    """Why there is no whole answer; None where there is one."""

    @property
    def per_token(self) -> float:
        """The mean time from one token to the next."""
        return (self.last - self.first) / max(1, self.tokens - 1)


async def ask(client: httpx.AsyncClient, body: Body) -> Seen:
    """Send a request and read its stream."""
    seen, began = Seen(), time.perf_counter()
    try:
        async with client.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != 200:
                seen.lost = f"status {response.status_code}: {(await response.aread()).decode()[:200]}"
                return seen
            async for line in response.aiter_lines():
                if not line.startswith("data: "):
                    continue
                if line == "data: [DONE]":
                    seen.lost = None if seen.tokens else "no tokens"
                    break
                _note(seen, json.loads(line[6:]), time.perf_counter() - began)
    except httpx.HTTPError as error:
        seen.lost = f"{type(error).__name__}: {error}"
    return seen


def _note(seen: Seen, chunk: dict[str, Any], now: float) -> None:
    if "error" in chunk:
        raise httpx.RemoteProtocolError(str(chunk["error"]))
    for choice in chunk["choices"]:
        # the first token may have no text yet: what comes first is counted
        seen.first = seen.first or now
        seen.last = now
        seen.text += choice["text"]
    if chunk.get("usage"):
        seen.tokens = chunk["usage"]["completion_tokens"]


def closed_loop(url: str, bodies: Sequence[Body], clients: int) -> tuple[list[Seen], float]:
    """So many clients, each of which sends its next request when it has the answer. Returns the seconds as well."""

    async def run(client: httpx.AsyncClient) -> list[Seen]:
        seen: list[Seen | None] = [None] * len(bodies)
        places = iter(range(len(bodies)))

        async def one() -> None:
            for place in places:
                seen[place] = await ask(client, bodies[place])

        await asyncio.gather(*(one() for _ in range(clients)))
        return [found for found in seen if found is not None]

    return _timed(url, run)


def open_loop(url: str, bodies: Sequence[Body], rate: float) -> tuple[list[Seen], float]:
    """Requests that come `rate` times a second on average, whatever is answered: a Poisson process."""
    chance = random.Random(0)

    async def run(client: httpx.AsyncClient) -> list[Seen]:
        coming = []
        for body in bodies:
            coming.append(asyncio.create_task(ask(client, body)))
            await asyncio.sleep(chance.expovariate(rate))
        return list(await asyncio.gather(*coming))

    return _timed(url, run)


def _timed(url: str, run: Callable[[httpx.AsyncClient], Any]) -> tuple[list[Seen], float]:
    async def timed() -> tuple[list[Seen], float]:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(base_url=url, timeout=900, limits=limits) as client:
            began = time.perf_counter()
            seen = await run(client)
            return seen, time.perf_counter() - began

    return asyncio.run(timed())


def summary(
    seen: Sequence[Seen], seconds: float, alone: Sequence[Seen], targets: tuple[float, float]
) -> dict[str, Any]:
    """Return the figures of a run.

    Args:
        seen: each request.
        seconds: all of them took.
        alone: the same requests, one at a time.
        targets: the time to the first token and per token within which a request counts as good.
    """
    whole = [one for one in seen if one.lost is None]
    good = [one for one in whole if one.first <= targets[0] and one.per_token <= targets[1]]
    pairs = zip(seen, alone, strict=True)
    return {
        "requests": len(seen),
        "lost": len(seen) - len(whole),
        "why_lost": next((one.lost for one in seen if one.lost is not None), None),
        "other_texts": sum(one.lost is None and one.text != other.text for one, other in pairs),
        "tokens_per_second": round(sum(one.tokens for one in whole) / seconds, 2),
        "requests_per_second": round(len(whole) / seconds, 3),
        "good_requests_per_second": round(len(good) / seconds, 3),
        "first_token_s": _quantiles([one.first for one in whole]),
        "per_token_s": _quantiles([one.per_token for one in whole]),
    }


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    if len(values) < 2:
        return {name: round(value, 4) for name in QUANTILES for value in values}
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {name: round(cuts[round(share * 100) - 1], 4) for name, share in QUANTILES.items()}
