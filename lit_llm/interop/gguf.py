"""This file writes a model of the Llama form as one GGUF file, for llama.cpp and what is built on it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lit_llm.config import ModelConfig, UserError
from lit_llm.config.files import whole_file
from lit_llm.interop.configuration import family_of
from lit_llm.interop.gguf_reading.names import NAMES
from lit_llm.interop.gguf_reading.pre_tokenizers import name_of_splitting
from lit_llm.model.position import rotary_frequencies
from lit_llm.tokenizer import Tokenizer
from lit_llm.tokenizer.chat import end_of_turn_id

if TYPE_CHECKING:
    from gguf import GGUFWriter

Kind = Literal["F32", "F16", "BF16", "Q8_0"]


def save_gguf(
    path: Path,
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    tokenizer: Tokenizer,
    kind: Kind,
    stop_ids: Sequence[int] = (),
    license_name: str | None = None,
) -> str:
    """Write one GGUF file, whole or not at all, converting one tensor at a time.

    Norms stay float32, and so do matrices that Q8_0 cannot hold because their rows are not a multiple of 32 long.

    Args:
        path: the file, `*.gguf`.
        config: the decoder's configuration.
        weights: its state_dict.
        tokenizer: written into the file.
        kind: how matrices are stored.
        stop_ids: tokens that end a text of this model besides the tokenizer's end of text and end of an assistant's
            turn; the format has room for three in all.
        license_name: of the model, as "apache-2.0"; None: the file names none.

    Returns:
        How the matrices are stored: `kind`, and where some of them stay float32 how many.

    Raises:
        UserError: llama.cpp has no such architecture, positions or tokenizer, Q8_0 can hold no matrix of the model, the
            package gguf is not installed, or the file cannot be written.
    """
    reason = why_not_gguf(config, tokenizer)
    if reason is not None:
        raise UserError(reason)
    try:
        import gguf
    except ImportError:
        raise UserError("writing GGUF needs the package gguf: pip install gguf") from None
    tensors = _tensors(config, weights)
    types = {name: _type_of(tensor, kind) for name, tensor in tensors.items()}
    held = _how_held([types[name] for name, tensor in tensors.items() if tensor.dim() > 1], kind)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            writer = gguf.GGUFWriter(partial, "llama")
            _describe_model(writer, config, kind, license_name)
            _describe_tokenizer(writer, config, tokenizer, stop_ids)
            for name, tensor in tensors.items():
                shape, size = _stored_shape(tensor, types[name])
                dtype = torch.empty(0, dtype=torch.uint8).numpy().dtype
                writer.add_tensor_info(name, shape, dtype, size, getattr(gguf.GGMLQuantizationType, types[name]))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for name, tensor in tensors.items():
                writer.write_tensor_data(_encode(tensor, types[name]))
            writer.close()
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}") from error
    return held


def why_not_gguf(config: ModelConfig, tokenizer: Tokenizer) -> str | None:
    """Say what of a model a GGUF file cannot express; None where it can express everything."""
    if config.output == "score":
        return "a reward model is not written as GGUF; export a language model, or give the format auto"
    family, reason = family_of(config)
    if family is None:
        return f"only the Llama form is written as GGUF, and {reason}"
    if family.model_type not in ("llama", "mistral") or config.qkv_bias or config.attention_output_bias:
        return f"only the Llama form without biases is written as GGUF, not {family.model_type}"
    if config.sliding_window is not None:
        return "llama.cpp has no sliding window for the Llama form"
    if config.activation != "swiglu" or config.mlp_bias:
        return "llama.cpp computes the Llama form with swiglu and without biases"
    if config.rope_scaling is not None and config.rope_scaling.type == "yarn":
        return "yarn positions are not written as GGUF"
    if tokenizer.kind != "bpe":
        return f"only a byte-level BPE tokenizer is written as GGUF, not one of kind {tokenizer.kind}"
    if tokenizer.vocab_size > (config.vocab_size or 0):
        return f"the tokenizer has {tokenizer.vocab_size} tokens and the model only {config.vocab_size}"
    if name_of_splitting(tokenizer.state) is None:
        return "llama.cpp has no name for how this tokenizer splits text: GPT-2's, SmolLM's, Llama 3's, Qwen's it has"
    return None


def _tensors(config: ModelConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the tensors llama.cpp's names, and q and k the order of rows in which it rotates neighbouring pairs."""
    tensors = {}
    for name, tensor in weights.items():
        if name == "head.weight" and config.tie_word_embeddings:
            continue
        module, _, kind = name.rpartition(".")
        block = re.match(r"blocks\.(\d+)\.", module)
        theirs = NAMES[re.sub(r"^blocks\.\d+\.", "blocks.{}.", module)].format(block.group(1) if block else "")
        if module in ("embedding", "head"):
            tensor = tensor[: config.vocab_size]
        if module.endswith(("q_proj", "k_proj")):
            halves = tensor.reshape(-1, 2, config.width_per_head // 2, tensor.size(1))
            tensor = halves.transpose(1, 2).reshape(tensor.shape)
        tensors[f"{theirs}.{kind}"] = tensor.detach()
    if config.rope_scaling is not None and config.rope_scaling.type == "llama3":
        plain, _ = rotary_frequencies(config.width_per_head, config.rope_theta, None)
        scaled, _ = rotary_frequencies(config.width_per_head, config.rope_theta, config.rope_scaling)
        tensors["rope_freqs.weight"] = plain / scaled
    return tensors


def _describe_model(writer: GGUFWriter, config: ModelConfig, kind: Kind, license_name: str | None) -> None:
    from gguf import GGML_QUANT_VERSION, LlamaFileType, RopeScalingType

    types = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16", "Q8_0": "MOSTLY_Q8_0"}
    writer.add_name("lit_llm")
    if license_name is not None:
        writer.add_license(license_name)
    writer.add_file_type(LlamaFileType[types[kind]])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size or 0)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.feedforward_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.width_per_head)
    writer.add_value_length(config.width_per_head)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_dimension_count(config.width_per_head)
    writer.add_rope_freq_base(config.rope_theta)
    if config.rope_scaling is not None and config.rope_scaling.type == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_scaling.factor)


def _describe_tokenizer(writer: GGUFWriter, config: ModelConfig, tokenizer: Tokenizer, stop_ids: Sequence[int]) -> None:
    from gguf import TokenType

    state = tokenizer.state
    tokens = [f"[PAD{index}]" for index in range(config.vocab_size or 0)]  # names for the rows that have no token
    types = [TokenType.UNUSED] * len(tokens)
    for token, index in state["model"]["vocab"].items():
        tokens[index], types[index] = token, TokenType.NORMAL
    for added in state["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in state["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name_of_splitting(state))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    # llama.cpp knows three kinds of end (of a text, of a turn, of a message), and each ends a text
    end_of_turn = end_of_turn_id(tokenizer)
    ends = (tokenizer.eot_id, tokenizer.im_end_id if end_of_turn is None else end_of_turn, *stop_ids)
    adders = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
    known = list(dict.fromkeys(index for index in ends if index is not None))
    if len(known) > len(adders):
        names = ", ".join(tokens[index] for index in known[len(adders) :])
        raise UserError(f"a GGUF file has room for {len(adders)} tokens that end a text, and none for {names}")
    ids = (
        (writer.add_bos_token_id, tokenizer.begin_id),
        (writer.add_pad_token_id, tokenizer.pad_id),
        *zip(adders, known, strict=False),
    )
    for add, index in ids:
        if index is not None:
            add(index)
    writer.add_add_bos_token(bool(tokenizer.rule_ids))
    if tokenizer.chat_template is not None:
        # this tag is for training, and llama.cpp's templates do not know it
        writer.add_chat_template(re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", tokenizer.chat_template))


def _type_of(tensor: Tensor, kind: Kind) -> Kind:
    if tensor.dim() == 1 or (kind == "Q8_0" and tensor.size(-1) % 32):
        return "F32"
    return kind


def _how_held(matrices: Sequence[Kind], kind: Kind) -> str:
    """Say how matrices of these types are stored where `kind` was asked for.

    Raises:
        UserError: none of them is.
    """
    if kind not in matrices:
        raise UserError(
            f"{kind} holds rows of a multiple of 32 numbers, and no matrix of the model has such; give float16"
        )
    exact = 0 if kind == "F32" else matrices.count("F32")
    return f"{kind} but for {exact} of {len(matrices)} matrices, which stay F32" if exact else kind


def _stored_shape(tensor: Tensor, kind: Kind) -> tuple[tuple[int, ...], int]:
    """Compute the shape in bytes and the size of a stored tensor; Q8_0 holds 32 numbers in 34 bytes."""
    of_32 = {"F32": 128, "F16": 64, "BF16": 64, "Q8_0": 34}[kind]
    shape = (*tensor.shape[:-1], tensor.size(-1) * of_32 // 32)
    return shape, tensor.numel() * of_32 // 32


def _encode(tensor: Tensor, kind: Kind) -> Any:
    """Encode a tensor as a numpy array of bytes."""
    tensor = tensor.cpu().contiguous()
    if kind == "Q8_0":
        from gguf import GGMLQuantizationType, quantize

        return quantize(tensor.float().numpy(), GGMLQuantizationType.Q8_0)
    dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind]
    converted = tensor.to(dtype)
    if not converted.isfinite().all() and tensor.isfinite().all():
        raise UserError("the weights have numbers beyond float16's 65,504; write float32 or bfloat16")
    return converted.view(torch.uint8).numpy()
