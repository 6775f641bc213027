"""What `gpu.py` measures of training: each piece gives its findings one by one, as they come."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from gpu_bench import Bench, Finding, tried
from torch import Tensor, nn

from lit_llm.config import ModelConfig, OptimizerConfig, PretrainConfig, TrainerConfig
from lit_llm.model import Decoder
from lit_llm.model.attention import (
    AttentionContext,
    attention_mask,
    fused_attention,
    softcapped_attention,
    spanned_attention,
)
from lit_llm.model.parallel import arrange
from lit_llm.model.spans import Spans, cut, document_starts, first_seen
from lit_llm.objectives import linear_cross_entropy
from lit_llm.optimization import build_optimizer
from lit_llm.planning import training_flops_per_token


def ceiling(bench: Bench) -> Iterator[Finding]:
    """The fastest products and the fastest reading, which the other figures are shares of."""
    side = 64 if bench.tiny else 8192
    for dtype in (torch.bfloat16, torch.float32):
        for precision in ("high", "highest") if dtype == torch.float32 and not bench.tiny else ("highest",):
            torch.set_float32_matmul_precision(precision)
            finding = {"product": str(dtype).removeprefix("torch."), "float32_precision": precision, "side": side}
            ms = bench.ms(bench._square(side, dtype))
            yield {**finding, "ms": ms, "tflops": round(2 * side**3 / ms / 1e9, 1)}
    torch.set_float32_matmul_precision("high" if not bench.tiny else "highest")

    def float8() -> Finding:
        a, b = (torch.randn(side, side, device=bench.device).to(torch.float8_e4m3fn) for _ in range(2))
        one = torch.ones((), device=bench.device)
        ms = bench.ms(lambda: torch._scaled_mm(a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16))
        return {"ms": ms, "tflops": round(2 * side**3 / ms / 1e9, 1)}

    if not bench.tiny:
        yield tried({"product": "float8", "side": side}, float8)
    yield {"read_gb_per_s": round(bench.bandwidth(), 1)}


def attention(bench: Bench) -> Iterator[Finding]:
    """Documents, windows and capped scores by each kernel, forward and backward."""
    b, n_h, n_kv, t, d = (2, 4, 2, 300, 16) if bench.tiny else (2, 32, 8, 4096, 64)
    ids = (torch.arange(t, device=bench.device) // (t // 5)).expand(b, t).contiguous()
    window = t // 8
    cases: dict[str, tuple[Tensor | None, int | None, float | None]] = {
        "causal": (None, None, None),
        "documents": (ids, None, None),
        "window": (None, window, None),
        "documents and window": (ids, window, None),
        "capped": (None, None, 30.0),
        "documents, capped": (ids, None, 30.0),
    }
    dtype = torch.float32 if bench.tiny else torch.bfloat16
    for case, (documents, width, softcap) in cases.items():
        heads = [
            torch.randn(b, n, t, d, device=bench.device, dtype=dtype, requires_grad=True) for n in (n_h, n_kv, n_kv)
        ]
        for kernel, attend in _kernels(bench, heads, documents, width, softcap).items():

            def both(attend: Callable[[], Tensor] = attend) -> None:
                attend().sum().backward()

            finding = {"case": case, "kernel": kernel, "shape": [b, n_h, n_kv, t, d], "window": width}
            yield tried(finding, lambda run=both: {"ms": bench.ms(run), "peak_mib": bench.peak_mib(run)})


def _kernels(
    bench: Bench, heads: list[Tensor], documents: Tensor | None, window: int | None, softcap: float | None
) -> dict[str, Callable[[], Tensor]]:
    q, k, v = heads
    length, device = q.size(2), q.device
    seen = {"window": window, "document_ids": documents}
    context = AttentionContext(None, *attention_mask(length, **seen, device=device))  # type: ignore[arg-type]
    if softcap is None:
        kernels: dict[str, Callable[[], Tensor]] = {"mask": lambda: fused_attention(q, k, v, context, 0.0)}
    else:
        kernels = {"mask": lambda: softcapped_attention(q, k, v, context, softcap, 0.0)}
    first = first_seen(length, **seen, device=device)  # type: ignore[arg-type]
    if bench.device == "cpu":
        spans = Spans(first, pieces=cut(length, **seen))  # type: ignore[arg-type]
        return {**kernels, "pieces": lambda: spanned_attention(q, k, v, spans, softcap, None)}
    from lit_llm.model.block_sparse import tiles_of

    tiles = Spans(first, tiles=tiles_of(first))
    kernels["flex"] = lambda: spanned_attention(q, k, v, tiles, softcap, None)
    if softcap is None:
        kernels["varlen"] = partial(_varlen, q, k, v, documents, window)
    return kernels


def _varlen(q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None, window: int | None) -> Tensor:
    """torch's attention over texts that follow each other, each known by its bounds."""
    from torch.nn.attention.varlen import varlen_attn

    b, n_h, t, _ = q.shape
    ids = torch.zeros(b, t, dtype=torch.long, device=q.device) if documents is None else documents
    starts = document_starts(ids).flatten().nonzero().flatten()
    bounds = torch.cat([starts, starts.new_tensor([b * t])]).int()
    group = n_h // k.size(1)
    rows = [x.repeat_interleave(group if x.size(1) != n_h else 1, 1).transpose(1, 2).flatten(0, 1) for x in (q, k, v)]
    seen = (-1 if window is None else window - 1, 0)
    return varlen_attn(*rows, bounds, bounds, t, t, window_size=seen)


def loss(bench: Bench) -> Iterator[Finding]:
    """Chunks of the loss, with the passes between its products compiled and not."""
    shapes = ((512, 64),) if bench.tiny else ((128256, 2048), (50304, 768))
    count = 64 if bench.tiny else 8192
    for classes, width in shapes:
        for compiled in (False,) if bench.tiny else (False, True):
            for chunk in (32, None) if bench.tiny else (2048, 4096, 8192):
                run = _loss_step(bench, count, classes, width, chunk, compiled)
                finding = {"V": classes, "d": width, "n": count, "chunk": chunk, "compiled": compiled}
                yield tried(finding, lambda run=run: {"ms": bench.ms(run, 5), "peak_mib": bench.peak_mib(run)})


def _loss_step(
    bench: Bench, count: int, classes: int, width: int, chunk: int | None, compiled: bool
) -> Callable[[], None]:
    hidden = torch.randn(count, width, device=bench.device, dtype=torch.bfloat16, requires_grad=True)
    weight = (torch.randn(classes, width, device=bench.device) * 0.02).requires_grad_()
    targets = torch.randint(0, classes, (count,), device=bench.device)
    places = torch.arange(count, device=bench.device)

    def step() -> None:
        with torch.autocast(bench.device, torch.bfloat16):
            total = linear_cross_entropy(
                hidden, weight, targets, chunk_tokens=chunk, supervised=places, compiled=compiled
            )
        total.backward()
        hidden.grad = weight.grad = None

    return step


def optimizers(bench: Bench) -> Iterator[Finding]:
    """An update by AdamW, by Muon, and by Muon with its iterations compiled."""
    for shape in ("tiny",) if bench.tiny else ("350m", "1b"):
        for name, compiled in (("adamw", False), ("muon", False), *((("muon", True),) if not bench.tiny else ())):
            model = Decoder(bench.model(shape, 2048), seed=None).to(bench.device)
            optimizer = build_optimizer(model, OptimizerConfig(name=name), compiled)  # type: ignore[arg-type]
            for parameter in model.parameters():
                nn.init.normal_(parameter, std=0.02)
                parameter.grad = torch.randn_like(parameter)
            finding = {"shape": shape, "optimizer": name, "compiled": compiled}
            yield tried(finding, lambda step=optimizer.step: {"ms": bench.ms(step, 5, 2)})
            del model, optimizer


def training(bench: Bench, shape: str) -> Iterator[Finding]:
    """Whole steps of rows of 2,048 tokens as a run on CUDA takes them, and with documents masked."""
    rows, length = (2, 300) if bench.tiny else (8, 2048)
    ceiling = bench.bf16_ceiling()
    documents = (torch.arange(length, device=bench.device) // (length // 5)).expand(rows, length).contiguous()
    for variant in ("plain", "documents", "documents by a mask", "not compiled"):
        trainer = TrainerConfig(
            compile=not bench.tiny and variant != "not compiled",
            precision="bf16-mixed",
            attention_kernel="mask" if variant == "documents by a mask" else "auto",
        )
        ids = documents if variant.startswith("documents") else None
        measure = partial(_speed, bench, bench.model(shape, length), trainer, rows, length, ids, ceiling)
        yield tried({"shape": shape, "variant": variant, "rows": rows, "length": length}, measure)


def _speed(
    bench: Bench,
    config: ModelConfig,
    trainer: TrainerConfig,
    rows: int,
    length: int,
    ids: Tensor | None,
    ceiling: float,
) -> Finding:
    began = time.perf_counter()
    step = training_step(bench, config, trainer, rows, length, ids)
    step()
    bench.wait()
    first = time.perf_counter() - began
    speed = rows * length / bench.ms(step, 8, 3) * 1e3
    tflops = speed * training_flops_per_token(config, length) / 1e12
    return {
        "tokens_per_s": round(speed),
        "tflops": round(tflops, 1),
        "share_of_ceiling": round(tflops / ceiling, 3),
        "first_step_s": round(first, 1),
        "peak_mib": bench.peak_mib(step),
    }


def training_step(
    bench: Bench, config: ModelConfig, trainer: TrainerConfig, rows: int, length: int, ids: Tensor | None = None
) -> Callable[[], Tensor]:
    """A step on tokens that follow each other by a rule, so that there is something to learn; gives its loss."""
    model = Decoder(config).to(bench.device).train()
    arrange(model, trainer, None)
    compiled = bool(trainer.compile) and bench.device == "cuda"
    optimizer = build_optimizer(model, OptimizerConfig(), compiled)
    generator = torch.Generator().manual_seed(0)
    vocabulary = config.vocab_size or 0
    starts = torch.randint(0, vocabulary, (rows, 1), generator=generator)
    tokens = ((starts + 7 * torch.arange(length + 1)) % vocabulary).to(bench.device)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].flatten()
    places = torch.arange(targets.numel(), device=bench.device)
    chunk = PretrainConfig().loss_chunk(bench.device)

    def head(hidden: Tensor, layer: nn.Linear) -> Tensor:
        states = hidden.flatten(0, 1)
        return linear_cross_entropy(
            states, layer.weight, targets, chunk_tokens=chunk, supervised=places, compiled=compiled
        )

    def step() -> Tensor:
        with torch.autocast(bench.device, torch.bfloat16):
            total = model(inputs, document_ids=ids, head=head) / targets.numel()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return total.detach()

    return step


def float8(bench: Bench) -> Iterator[Finding]:
    """Steps in float8 beside steps in bfloat16: their speed, and the loss after as many of them."""
    length, rows, steps = (32, 2, 3) if bench.tiny else (2048, 8, 60)
    for wanted in (False,) if bench.tiny else (False, True):
        config = bench.model("1b", length)
        trainer = TrainerConfig(compile=not bench.tiny, precision="bf16-mixed", float8=wanted)

        def measure(config: ModelConfig = config, trainer: TrainerConfig = trainer) -> Finding:
            step = training_step(bench, config, trainer, rows, length)
            losses = [step() for _ in range(steps)]
            every = losses[:: max(1, steps // 6)] + losses[-1:]
            ms = bench.ms(step, 8, 1)
            return {
                "losses": [round(float(each), 4) for each in every],
                "tokens_per_s": round(rows * length / ms * 1e3),
                "peak_mib": bench.peak_mib(step),
            }

        yield tried({"shape": "1b", "float8": wanted, "steps": steps}, measure)
