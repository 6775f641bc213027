"""POST /v1/embeddings: a vector for each text."""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field

from lit_llm.config import UserError
from lit_llm.generation.embeddings import Pooling, embed, passes
from lit_llm.serving.errors import ApiError
from lit_llm.serving.protocol import Body, some_texts
from lit_llm.serving.registry import Use


def _not_empty(texts: list[str | list[int]]) -> list[str | list[int]]:
    if "" in texts:
        raise ApiError("a text of input is empty, and has no vector", param="input")
    return texts


class EmbeddingRequest(Body):
    """The body of POST /v1/embeddings."""

    model: str
    input: Annotated[list[str | list[int]], some_texts("input"), AfterValidator(_not_empty)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str = ""
    # ours: which of the hidden states a text's vector is, and whether its length is made 1
    pooling: Pooling = "mean"
    normalize: bool = True


async def embeddings(body: EmbeddingRequest, use: Use, on_tokens: Callable[[int], None]) -> dict[str, Any]:
    """Return the answer to a request. When the call is cancelled, no further texts are read.

    Args:
        body: the request.
        use: that of the model.
        on_tokens: called with the number of tokens before they are read.

    Raises:
        ApiError: a text is empty or too long, `dimensions` is not the model's width, or the model fails.
    """
    width = use.served.width
    if body.dimensions is not None and body.dimensions != width:
        message = f"dimensions is {body.dimensions}; vectors of {use.served.name} have {width}, and are not shortened"
        raise ApiError(message, param="dimensions")
    prompts = await use.preparation.prompts(body.input)
    tokens = sum(map(len, prompts))
    on_tokens(tokens)
    vectors: list[torch.Tensor] = [torch.empty(0)] * len(prompts)
    for places in passes([len(prompt) for prompt in prompts], use.worker.max_batch):
        texts = [prompts[place] for place in places]
        work = partial(embed, prompts=texts, pooling=body.pooling, normalize=body.normalize, adapter=use.served.adapter)
        try:
            read = await use.worker.call(work)
        except UserError as error:
            raise ApiError(f"the texts cannot be embedded: {error}", 500) from None
        for place, vector in zip(places, read, strict=True):
            vectors[place] = vector
    return {
        "object": "list",
        "model": use.served.name,
        "data": [
            {"object": "embedding", "index": index, "embedding": _encoded(vector, body.encoding_format)}
            for index, vector in enumerate(vectors)
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _encoded(vector: torch.Tensor, encoding: str) -> list[float] | str:
    """Write a vector as a list, or as the base64 of its float32 numbers, the lowest byte first."""
    if encoding == "float":
        return vector.tolist()
    return base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode()
