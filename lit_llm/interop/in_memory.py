"""A model of Hugging Face transformers that is in memory as a decoder of ours, without a folder in between."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch

from lit_llm.config import UserError
from lit_llm.interop.configuration import read_config
from lit_llm.interop.families import FAMILIES
from lit_llm.interop.reading import convert_weights
from lit_llm.interop.weights import WeightsInMemory
from lit_llm.model import Decoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def decoder_from_transformers(model: PreTrainedModel, dtype: torch.dtype | None = None) -> Decoder:
    """The decoder that computes what a transformers model does.

        decoder = decoder_from_transformers(AutoModelForCausalLM.from_pretrained("gpt2"))

    Args:
        model: of an architecture in `lit_llm.interop.families.FAMILIES`, with its language-model head, or with a head
            of one score. It is not changed, and shares no memory with the decoder.
        dtype: what the weights are converted to; None keeps them as they are.

    Returns:
        It, in evaluation mode and on the device of `model`. Its logits are those of `model`, its scores the ones that
        `model` gives at the last token.

    Raises:
        UserError: the architecture, or an option of its configuration, is none that we compute; or its weights are
            quantized or not finite.
    """
    values = {**json.loads(model.config.to_json_string()), "architectures": [type(model).__name__]}
    what, family = f"the {type(model).__name__} in memory", FAMILIES.get(model.config.model_type)
    if family is None:
        raise UserError(f"{what} is of type {model.config.model_type}; only {', '.join(FAMILIES)} can be read")
    if type(model).__name__ not in (family.architecture, family.classifier):
        raise UserError(f"{what} has another head; give a {family.architecture} or a {family.classifier}")
    try:
        config, _ = read_config(values)
    except UserError as error:
        raise UserError(f"{what}: {error}") from error
    family = family.scoring() if config.output == "score" else family
    with torch.device("meta"):
        decoder = Decoder(config)
    weights = dict(convert_weights(WeightsInMemory(model.state_dict(), what), config, family, dtype))
    if config.tie_word_embeddings:
        weights["head.weight"] = weights["embedding.weight"]
    decoder.load_state_dict(weights, assign=True)
    decoder.tie()
    return decoder.eval()
