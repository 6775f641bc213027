"""What tokens see as spans: cut into pieces and into tiles, and both kernels against the mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import tiny_model
from random_decoder import largest_difference, random_decoder, random_tokens
from torch import Tensor

from lit_llm.config import TrainerConfig
from lit_llm.model import Decoder
from lit_llm.model.attention import AttentionContext, attention_mask, spanned_attention, what_is_seen
from lit_llm.model.block_sparse import TILE, tiles_of
from lit_llm.model.parallel import arrange
from lit_llm.model.piecewise import piecewise_attention
from lit_llm.model.spans import PIECE, Spans, cut, first_seen, kernel_for, spans_of

CPU = torch.device("cpu")
LENGTH = 300
# starts of documents: short ones that are gathered, one of exactly a piece, long ones, and one of a single token
STARTS = ([0, 3, 40, 100, 100 + PIECE, 299], [0, 200, 201])


def documents(length: int = LENGTH, starts: tuple[list[int], ...] = STARTS) -> Tensor:
    ids = torch.zeros(len(starts), length, dtype=torch.long)
    for row, begins in enumerate(starts):
        ids[row, begins[1:]] = 1
    return ids.cumsum(1)


CASES = [(True, None), (True, 7), (True, 130), (False, 7), (False, 130), (False, None)]


def mask_of(length: int, window: int | None, ids: Tensor | None) -> Tensor:
    mask, _ = attention_mask(length, window=window, document_ids=ids, device=CPU)
    return torch.ones(1, 1, length, length, dtype=torch.bool).tril() if mask is None else mask


@pytest.mark.parametrize(("with_documents", "window"), CASES)
def test_pieces_and_tiles_cover_what_the_mask_shows(with_documents: bool, window: int | None) -> None:
    ids = documents() if with_documents else None
    mask = mask_of(LENGTH, window, ids)[:, 0]
    first = first_seen(LENGTH, window=window, document_ids=ids, device=CPU)
    keys, queries = torch.arange(LENGTH), torch.arange(LENGTH)[:, None]
    assert torch.equal((keys >= first[:, None].mT) & (keys <= queries), mask)
    # each piece in its place: with a mask the spans are what is left of it, without one causality is
    shown = torch.zeros(2 if with_documents else 1, LENGTH, LENGTH, dtype=torch.int)
    for row, start, end, seen, is_masked in cut(LENGTH, window=window, document_ids=ids).tolist():
        assert end - start <= PIECE or not is_masked
        inside = (keys >= seen) & (keys <= queries) & (queries >= start) & (queries < end)
        shown[row] += (inside & mask[row] if is_masked else inside).int()
    assert torch.equal(shown, mask.int())
    # a tile is left out where the mask shows nothing of it, and needs no mask where all of it is shown
    count = -(-LENGTH // TILE)
    padded = torch.zeros(len(mask), count * TILE, count * TILE)
    padded[:, :LENGTH, :LENGTH] = mask.float()
    padded[:, LENGTH:] = padded[:, LENGTH - 1 : LENGTH]
    shares = padded.view(-1, count, TILE, count, TILE).mean((2, 4))
    tiles = tiles_of(first)
    assert torch.equal(dense(tiles.kv_num_blocks, tiles.kv_indices), (shares > 0) & (shares < 1))
    assert torch.equal(dense(tiles.full_kv_num_blocks, tiles.full_kv_indices), shares == 1)


def dense(counts: Tensor, numbers: Tensor) -> Tensor:
    out = torch.zeros(numbers.shape, dtype=torch.bool)
    named = torch.arange(numbers.size(-1)) < counts.unsqueeze(-1)
    return out.scatter(-1, numbers.long(), named)[:, 0]


def test_short_documents_are_gathered_and_long_ones_are_not() -> None:
    assert cut(LENGTH, window=None, document_ids=documents()).tolist() == [
        [0, 0, 100, 0, 1],
        [0, 100, 228, 100, 0],
        [0, 228, 300, 228, 1],
        [1, 0, 200, 0, 0],
        [1, 200, 300, 200, 1],
    ]
    # the window covers the first tokens of a long text, and lets go of one more with each query after them
    assert cut(500, window=200, document_ids=None).tolist() == [
        [-1, 0, 200, 0, 0],
        [-1, 200, 328, 1, 1],
        [-1, 328, 456, 129, 1],
        [-1, 456, 500, 257, 1],
    ]


def random_heads(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(  # type: ignore[return-value]
        torch.randn(2, heads, LENGTH, 16, generator=generator).to(dtype).requires_grad_() for heads in (4, 2, 2)
    )


def by_mask(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, softcap: float | None) -> Tensor:
    """The plain formula in float64."""
    q, k, v = (x.double().repeat_interleave(4 // x.size(1), 1) for x in (q, k, v))
    scores = q @ k.mT * 16**-0.5
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v


def results(out: Tensor, inputs: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
    weights = torch.randn(2, 4, LENGTH, 16, generator=torch.Generator().manual_seed(1))
    return [out.detach(), *torch.autograd.grad((out.double() * weights).sum(), inputs)]


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize(("with_documents", "window"), CASES)
def test_pieces_give_the_values_and_gradients_of_the_mask(
    with_documents: bool, window: int | None, softcap: float | None
) -> None:
    ids, inputs = documents() if with_documents else None, random_heads()
    first = first_seen(LENGTH, window=window, document_ids=ids, device=CPU)
    spans = Spans(first, pieces=cut(LENGTH, window=window, document_ids=ids))
    expected = results(by_mask(*inputs, mask_of(LENGTH, window, ids), softcap), inputs)
    for found, wanted in zip(results(spanned_attention(*inputs, spans, softcap, None), inputs), expected, strict=True):
        assert largest_difference(found, wanted) < 1e-5 * max(1.0, float(wanted.abs().max()))
    halves = random_heads(torch.bfloat16)
    for found, wanted in zip(results(spanned_attention(*halves, spans, softcap, None), halves), expected, strict=True):
        assert found.dtype == torch.bfloat16
        assert largest_difference(found, wanted) < 0.03 * max(1.0, float(wanted.abs().max()))


def test_the_operation_of_pieces_is_sound() -> None:
    """Its fake form, its gradient and its schema are what torch's own checks ask for."""
    q, k, v = (x.detach()[:1, :, :9, :4].double().requires_grad_() for x in random_heads())
    ids = documents(9, ([0, 5],))
    first = first_seen(9, window=None, document_ids=ids, device=CPU)
    for softcap in (None, 2.0):
        arguments = (q, k, v, first, cut(9, window=None, document_ids=ids), 0.25, softcap)
        torch.library.opcheck(piecewise_attention, arguments, test_utils=("test_schema", "test_faketensor"))
        assert torch.autograd.gradcheck(
            lambda q, k, v, rest=arguments[3:]: piecewise_attention(q, k, v, *rest)[0], (q, k, v)
        )


@pytest.fixture
def flex_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch compute FlexAttention's gradients on the CPU, from its definition, which it refuses to be asked for."""
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *_: None)
    monkeypatch.setattr(
        "lit_llm.model.block_sparse._compiled", lambda: torch.nn.attention.flex_attention.flex_attention
    )


@pytest.mark.usefixtures("flex_on_cpu", "fresh_compiler")
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_tiles_give_the_values_and_gradients_of_the_mask() -> None:
    """Documents, a window, a soft cap and grouped heads at once; and rows that are all alike."""
    for ids, window, softcap in ((documents(), 130, 2.0), (None, 50, None)):
        inputs = random_heads()
        spans = Spans(first := first_seen(LENGTH, window=window, document_ids=ids, device=CPU), tiles=tiles_of(first))
        expected = results(by_mask(*inputs, mask_of(LENGTH, window, ids), softcap), inputs)
        found = results(spanned_attention(*inputs, spans, softcap, None), inputs)
        for one, other in zip(found, expected, strict=True):
            assert largest_difference(one, other) < 1e-5 * max(1.0, float(other.abs().max()))


def model_of(**fields: Any) -> Decoder:
    fields = {"num_layers": 2, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512, **fields}
    return random_decoder(tiny_model("llama-10m", **fields), std=0.05).train()


def gradients(model: Decoder, **inputs: Any) -> dict[str, Tensor]:
    model.zero_grad()
    out = model(random_tokens(model.config, 2, LENGTH), **inputs)
    out.square().mean().backward()
    return {"out": out.detach(), **{name: p.grad for name, p in model.named_parameters()}}


@pytest.mark.parametrize("fields", [{}, {"attention_softcap": 3.0, "sliding_window": 100, "full_attention_every": 2}])
def test_a_decoder_needs_no_mask(fields: dict[str, Any]) -> None:
    model = model_of(**fields)
    contexts: list[AttentionContext] = []
    model.blocks[0].register_forward_pre_hook(lambda _, inputs: contexts.append(inputs[1]))
    found = gradients(model, document_ids=documents())
    arrange(model, TrainerConfig(attention_kernel="mask"), None)
    expected = gradients(model, document_ids=documents())
    assert [context.mask is None for context in contexts] == [True, False]
    assert [context.spans is None for context in contexts] == [False, True]
    for name, value in expected.items():
        assert largest_difference(found[name], value) < 1e-5 * max(1.0, float(value.abs().max())), name


def kind(config: Any, length: int, dtype: torch.dtype = torch.float32, **options: Any) -> str:
    options = {"window": None, "document_ids": None, "device": CPU, "drops": False, **options}
    spans = spans_of(config, length, dtype=dtype, **options)
    return "none" if spans is None else "pieces" if spans.pieces is not None else "tiles"


def test_which_kernel_is_chosen() -> None:
    plain, capped = tiny_model("llama-10m"), tiny_model("llama-10m", attention_softcap=3.0)
    ids = documents()
    assert kind(plain, LENGTH, document_ids=ids) == kind(plain, LENGTH, window=LENGTH - 1) == "pieces"
    assert kind(capped, LENGTH) == "pieces"
    # causality says it all; weights are dropped; so short that a mask is as fast
    assert kind(plain, LENGTH) == kind(plain, LENGTH, window=LENGTH) == "none"
    assert kind(plain, LENGTH, document_ids=ids, drops=True) == "none"
    assert kind(plain, 256, document_ids=ids[:, :256]) == "none"
    wide = tiny_model("llama-10m", head_dim=64)
    assert kernel_for(wide, "cuda", torch.bfloat16, False) == "tiles"
    assert kernel_for(wide, "cuda", torch.float64, False) is None
    assert kernel_for(tiny_model("llama-10m", head_dim=8), "cuda", torch.bfloat16, False) is None
    assert kernel_for(wide, "mps", torch.float32, False) is None
    dropping = tiny_model("llama-10m", dropout=0.1)
    x = torch.zeros(2, LENGTH, 32)
    seen = [
        what_is_seen(dropping, x, window=None, document_ids=ids, training=training)[2] for training in (True, False)
    ]
    assert [spans is None for spans in seen] == [True, False]


@pytest.mark.usefixtures("flex_on_cpu", "fresh_compiler")
@pytest.mark.parametrize("kernel", ["pieces", "tiles"])
def test_other_documents_do_not_compile_a_block_again(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or once, for pieces. Under autocast, with the kernel's result kept by selective checkpointing."""
    model = model_of(num_layers=1)
    arrange(model, TrainerConfig(activation_checkpointing="selective"), None)
    layouts = [documents(starts=starts) for starts in (([0, 100], [0, 200]), ([0, 10], [0, 290]), ([0], [0, 1]))]

    def tiled(*_: Any, document_ids: Tensor, device: torch.device, **__: Any) -> Spans:
        first = first_seen(LENGTH, window=None, document_ids=document_ids, device=device)
        return Spans(first, tiles=tiles_of(first))

    with torch.autocast("cpu", torch.bfloat16):
        expected = [gradients(model, document_ids=ids) for ids in layouts]
        if kernel == "tiles":
            monkeypatch.setattr("lit_llm.model.attention.spans_of", tiled)
        model.blocks[0].compile(backend="eager", fullgraph=True)
        for ids, wanted in zip(layouts, expected, strict=True):
            for name, value in gradients(model, document_ids=ids).items():
                assert largest_difference(value, wanted[name]) <= 0.05 * float(wanted[name].abs().max()), name
    # the number of pieces varies, for which the second graph is made
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == {"pieces": 2, "tiles": 1}[kernel]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("fields", [{}, {"attention_softcap": 3.0, "sliding_window": 100, "full_attention_every": 2}])
def test_a_decoder_on_cuda_is_that_with_a_mask_on_the_cpu(fields: dict[str, Any], compiled: bool) -> None:
    model = model_of(**fields)
    arrange(model, TrainerConfig(attention_kernel="mask", accelerator="cpu"), None)
    expected = gradients(model, document_ids=documents())
    model = model_of(**fields).cuda()
    arrange(model, TrainerConfig(compile=compiled), None)
    model.zero_grad()
    out = model(random_tokens(model.config, 2, LENGTH).cuda(), document_ids=documents().cuda())
    out.square().mean().backward()
    found = {"out": out.detach(), **{name: p.grad for name, p in model.named_parameters()}}
    for name, value in expected.items():
        assert largest_difference(found[name].cpu(), value) < 1e-2 * max(1.0, float(value.abs().max())), name
