"""Attention against plain references, and the masks that it can do without."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import tiny_model
from random_decoder import largest_difference, random_decoder, random_tokens
from torch import Tensor

from lit_llm.model.attention import Attention, AttentionContext, attention_mask, fused_attention, softcapped_attention

CPU = torch.device("cpu")
TOLERANCE = 1e-5


def random_heads(n_h: int, n_kv: int, t: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q = 2 * torch.randn(2, n_h, t, d, generator=generator)
    k, v = 2 * torch.randn(2, 2, n_kv, t, d, generator=generator)
    return q, k, v


def by_hand(q: Tensor, k: Tensor, v: Tensor, window: int, softcap: float | None) -> Tensor:
    """One row, head and query at a time, in float64."""
    out = torch.zeros_like(q, dtype=torch.float64)
    b, n_h, t, d = q.shape
    for row in range(b):
        for head in range(n_h):
            shared = head * k.size(1) // n_h  # consecutive query heads share a key and value head
            for i in range(t):
                seen = range(max(0, i - window + 1), i + 1)
                scores = torch.stack([q[row, head, i].double() @ k[row, shared, j].double() / d**0.5 for j in seen])
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                out[row, head, i] = sum(
                    w * v[row, shared, j].double() for w, j in zip(scores.softmax(0), seen, strict=True)
                )
    return out


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(("n_h", "n_kv"), [(4, 4), (6, 2), (3, 1)])
def test_both_kernels_against_plain_loops(n_h: int, n_kv: int, window: int | None, softcap: float | None) -> None:
    q, k, v = random_heads(n_h, n_kv, 7, 8)
    mask, is_causal = attention_mask(7, window=window, document_ids=None, device=CPU)
    context = AttentionContext(torch.zeros(2, 7), mask, is_causal, None, None)
    if softcap is None:
        out = fused_attention(q, k, v, context, 0.0)
    else:
        out = softcapped_attention(q, k, v, context, softcap, 0.0)
    assert largest_difference(out, by_hand(q, k, v, window or 7, softcap)) < TOLERANCE


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(("n_h", "n_kv"), [(6, 2), (3, 1)])
def test_one_grouped_query_is_the_last_of_a_text(n_h: int, n_kv: int, window: int | None) -> None:
    q, k, v = random_heads(n_h, n_kv, 7, 8)
    mask = None if window is None else (torch.arange(7) > 6 - window).view(1, 1, 1, 7)
    out = fused_attention(q[:, :, -1:], k, v, AttentionContext(None, mask, False), 0.0)
    assert out.shape == (2, n_h, 1, 8)
    assert largest_difference(out, by_hand(q, k, v, window or 7, None)[:, :, -1:]) < TOLERANCE
    # of a text of one token
    alone = fused_attention(q[:, :, :1], k[:, :, :1], v[:, :, :1], AttentionContext(None, None, True), 0.0)
    assert largest_difference(alone[:, :, 0], v[:, :, 0].repeat_interleave(n_h // n_kv, 1)) < TOLERANCE


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("by_cudnn", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 1024])
@pytest.mark.parametrize("masked", [True, False])
def test_no_scores_are_written_out_on_cuda(masked: bool, tokens: int, dtype: torch.dtype, by_cudnn: bool) -> None:
    """Grouped heads, whose scores would take 2 x 16 x 1024 x 1024 numbers."""
    q, k, v = (x.cuda().to(dtype) for x in random_heads(16, 4, 1024, 64))
    q = q[:, :, -tokens:].requires_grad_()
    mask, is_causal = attention_mask(1024, window=100 if masked else None, document_ids=None, device=q.device)
    mask = None if mask is None else mask[:, :, -tokens:]
    context = AttentionContext(None, mask, is_causal and tokens > 1)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(by_cudnn)
    try:
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        out = fused_attention(q, k, v, context, 0.0)
        out.sum().backward()
        taken = torch.cuda.max_memory_allocated() - held
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
    assert taken < 2 * 16 * tokens * 1024 * dtype.itemsize + 2**23 * (tokens == 1)
    expected = fused_attention(*(x.detach().cpu().float() for x in (q, k, v)), _on_cpu(context), 0.0)
    assert largest_difference(out.cpu().float(), expected) < (1e-2 if dtype == torch.bfloat16 else 1e-4) * 8


def _on_cpu(context: AttentionContext) -> AttentionContext:
    return replace(context, mask=None if context.mask is None else context.mask.cpu())


def test_a_huge_soft_cap_changes_nothing_and_a_small_one_does() -> None:
    plain = random_decoder(tiny_model("llama-10m"))
    tokens = random_tokens(plain.config, 2, 16)

    def with_cap(cap: float) -> Tensor:
        model = random_decoder(tiny_model("llama-10m", attention_softcap=cap))
        return model(tokens)

    assert largest_difference(with_cap(1e4), plain(tokens)) < 1e-4
    assert largest_difference(with_cap(0.1), plain(tokens)) > 0.1


def test_the_logits_soft_cap_bounds_logits_by_its_formula() -> None:
    plain = random_decoder(tiny_model("llama-10m"))
    capped = random_decoder(tiny_model("llama-10m", logits_softcap=1.5))
    tokens = random_tokens(plain.config, 2, 16)
    logits = plain(tokens)
    assert logits.abs().max() > 3.0
    assert largest_difference(capped(tokens), 1.5 * torch.tanh(logits / 1.5)) < TOLERANCE


def test_grouped_queries_are_multi_head_attention_with_repeated_keys_and_values() -> None:
    grouped = random_decoder(tiny_model("llama-10m", num_key_value_heads=2))
    full = random_decoder(tiny_model("llama-10m"))
    weights = grouped.state_dict()
    for name in weights:
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            heads = weights[name].view(2, 8, 32)  # [n_kv, d, hidden]
            weights[name] = heads.repeat_interleave(2, dim=0).reshape(32, 32)
    full.load_state_dict(weights)
    tokens = random_tokens(grouped.config, 2, 16)
    assert largest_difference(grouped(tokens), full(tokens)) < TOLERANCE


def test_value_embeddings_and_qk_norm_by_hand() -> None:
    """One token: attention gives back its value, whatever q and k are."""
    config = tiny_model("modern-1m", value_embeddings=True)
    attention = random_decoder(config).blocks[1].attention
    token = torch.tensor([[7]])
    x = torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(0))
    out = attention(x, AttentionContext(token, None, True, None, None))
    gate = 2 * torch.sigmoid(attention.value_gate.weight @ x[0, 0, :32])  # [n_kv]
    value = attention.v_proj.weight @ x[0, 0] + (gate[:, None] * attention.value_embedding.weight[7].view(4, 8)).ravel()
    assert largest_difference(out[0, 0], attention.o_proj.weight @ value) < TOLERANCE


def test_queries_and_keys_are_normed_before_they_are_turned() -> None:
    """The weights of the norms are uneven, so that the order matters."""
    config = tiny_model("qwen3-0.6b", num_key_value_heads=2, head_dim=8)
    model = random_decoder(config)
    attention, x = model.blocks[0].attention, torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(0))
    rotary = model.rotary(torch.arange(7), torch.float32)
    out = attention(x, AttentionContext(torch.zeros(2, 7), None, True, rotary, None))

    def heads(projection: torch.nn.Linear) -> Tensor:
        return projection(x).view(2, 7, -1, 8).transpose(1, 2)

    def turned(x: Tensor, norm: torch.nn.RMSNorm) -> Tensor:
        normed = norm.weight * x / (x.square().mean(-1, keepdim=True) + config.norm_eps).sqrt()
        pairs = torch.complex(*normed.chunk(2, -1)) * torch.complex(*rotary)
        return torch.cat([pairs.real, pairs.imag], -1)

    q, k = turned(heads(attention.q_proj), attention.q_norm), turned(heads(attention.k_proj), attention.k_norm)
    expected = by_hand(q, k, heads(attention.v_proj), 7, None).transpose(1, 2).flatten(2).float()
    assert largest_difference(out, attention.o_proj(expected)) < TOLERANCE


@pytest.mark.parametrize(("num_layers", "expected"), [(1, [True]), (3, [True, False, True]), (2, [False, True])])
def test_every_second_layer_has_value_embeddings_and_the_last_one_does(num_layers: int, expected: list[bool]) -> None:
    config = tiny_model("modern-1m", num_layers=num_layers)
    layers = [Attention(config, layer) for layer in range(num_layers)]
    assert [layer.value_embedding is not None for layer in layers] == expected


def mask_of(length: int, window: int | None = None) -> tuple[Tensor | None, bool]:
    return attention_mask(length, window=window, document_ids=None, device=CPU)


def test_no_mask_is_built_where_the_kernel_needs_none() -> None:
    assert mask_of(16) == (None, True)
    assert mask_of(16, window=16) == (None, True)


def test_a_mask_is_built_where_it_is_needed() -> None:
    documents = attention_mask(4, window=None, document_ids=torch.zeros(1, 4), device=CPU)
    for mask, is_causal in (mask_of(16, window=15), documents):
        assert mask is not None
        assert not is_causal


def test_masks_entry_by_entry() -> None:
    window = mask_of(4, window=2)[0]
    assert window.int().tolist() == [[[[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]]]
    documents = attention_mask(4, window=None, document_ids=torch.tensor([[0, 0, 1, 1]]), device=CPU)[0]
    assert documents.int().tolist() == [[[[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]]]


def test_attention_dropout_works_in_training_alone() -> None:
    for softcap in (None, 5.0):
        attention = random_decoder(tiny_model("gpt2", dropout=0.5, attention_softcap=softcap)).blocks[0].attention
        x = torch.randn(2, 8, 32)
        context = AttentionContext(torch.zeros(2, 8), None, True, None, None)
        assert torch.equal(attention(x, context), attention(x, context))
        attention.train()
        assert not torch.equal(attention(x, context), attention(x, context))
        for other in ({"dropout": 0.0}, {"attention_dropout": 0.0}):
            attention.config = replace(attention.config, **other)
            assert torch.equal(attention(x, context), attention.eval()(x, context))
            attention.train()
        attention.config = replace(attention.config, dropout=0.0, attention_dropout=0.5)
        assert not torch.equal(attention(x, context), attention(x, context))
