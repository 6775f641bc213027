"""The decoder of lit_llm for Hugging Face transformers, in three files that travel inside a model folder.

transformers has no architecture with, for example, value embeddings or a token smear. A folder with such a model
carries these files, and loads by `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`; a reward model
by `AutoModelForSequenceClassification`. They need torch and transformers alone. Weights have the names of lit_llm's
`model.safetensors`.
"""

import math
from dataclasses import fields
from typing import ClassVar

import torch
from torch import nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast, SequenceClassifierOutputWithPast
from transformers.utils import can_return_tuple

from .configuration_lit_llm import LitLLMConfig
from .layers_lit_llm import (
    Block,
    OffsetRMSNorm,
    TokenSmear,
    at_least_float32,
    attention_masks,
    make_norm,
    rotary_tables,
    sinusoids,
)

# transformers 5.24 renamed `past_key_values` of outputs and arguments to `cache`
CACHE = "cache" if "cache" in {field.name for field in fields(CausalLMOutputWithPast)} else "past_key_values"


class LitLLMPreTrainedModel(PreTrainedModel):
    """Embedding, blocks, norm and a head of `outputs` rows."""

    config_class = LitLLMConfig
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["Block"]
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values", "cache"]
    _supports_sdpa = True

    def __init__(self, config: LitLLMConfig, outputs: int):
        super().__init__(config)
        self.embedding = nn.Embedding(config.embedding_rows, config.hidden_size)
        self.position_embedding = None
        if config.position == "learned":
            self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.embedding_norm = make_norm(config) if config.embedding_norm else None
        self.smear = TokenSmear(config) if config.token_smear else None
        self.stream_share = nn.Parameter(torch.ones(config.num_layers)) if config.x0_shortcut else None
        self.shortcut_share = nn.Parameter(torch.zeros(config.num_layers)) if config.x0_shortcut else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.final_norm = make_norm(config) if config.norm_placement != "post" else None
        self.head = nn.Linear(config.hidden_size, outputs, bias=False)
        self.value_head = nn.Linear(config.hidden_size, 1, bias=False) if config.value_head else None
        self.post_init()

    def get_input_embeddings(self):
        """The embedding of tokens."""
        return self.embedding

    def set_input_embeddings(self, value):
        """Replace the embedding of tokens."""
        self.embedding = value

    def resize_token_embeddings(self, new_num_tokens=None, pad_to_multiple_of=None, mean_resizing=True):
        """Change the number of tokens, in the embeddings of values, too."""
        before = self.embedding.num_embeddings
        embedding = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        if embedding.num_embeddings != before:
            self.config.pad_vocab_to_multiple_of = 1  # every row is now a token
            for block in self.blocks:
                if block.attention.value_embedding is not None:
                    block.attention.value_embedding = self._get_resized_embeddings(
                        block.attention.value_embedding, embedding.num_embeddings, mean_resizing=mean_resizing
                    )
        return embedding

    def _init_weights(self, module):
        """Initial values of what a file lacks. Training from nothing is lit_llm's, which scales by depth, too."""
        super()._init_weights(module)
        if isinstance(module, OffsetRMSNorm):
            nn.init.zeros_(module.weight)
        elif isinstance(module, TokenSmear):
            nn.init.zeros_(module.strength)
        elif isinstance(module, LitLLMPreTrainedModel) and module.stream_share is not None:
            nn.init.ones_(module.stream_share)
            nn.init.zeros_(module.shortcut_share)

    def read(self, tokens, attention_mask, positions, cache, use_cache, output_hidden_states, unused):
        """Normed hidden states [b, t, hidden], the cache, and the states before each block and at the end.

        Args:
            tokens: new ids [b, t].
            attention_mask: 1 at tokens and 0 at padding [b, past + t]; None where nothing is padding.
            positions: of the new tokens [b, t]; None counts the tokens that are no padding. Where no mask is given, a
                document begins at each 0, and documents do not see each other.
            cache: of the tokens before; extended.
            use_cache: whether to make a cache where none is given; None: as configured, and not in training.
            output_hidden_states: whether states are returned; None: as configured.
            unused: further arguments of the caller.
        """
        if tokens is None or unused.get("inputs_embeds") is not None:
            raise ValueError("this model reads token ids (input_ids): its layers embed them a second time")
        if unused.get("output_attentions"):
            raise ValueError("attention weights are not kept: the fused kernel does not give them")
        config = self.config
        if cache is None and (config.use_cache and not self.training if use_cache is None else use_cache):
            cache = DynamicCache(config=config)
        past = cache.get_seq_length() if cache is not None else 0
        attended, documents, positions = self._layout(tokens, attention_mask, positions, past)
        x = self._embed(tokens, positions, past, cache)
        masks = attention_masks(config.windows, tokens.size(1), past, attended, documents, tokens.device)
        tables = {
            window: rotary_tables(config, window is not None, positions, x.dtype) if config.position == "rope" else None
            for window in masks
        }
        x0, states = x, []
        for layer, (block, window) in enumerate(zip(self.blocks, config.windows, strict=True)):
            states.append(x)
            if self.stream_share is not None:
                share, shortcut = self.stream_share[layer].to(x.device), self.shortcut_share[layer].to(x.device)
                x = share * x + shortcut * x0.to(x.device)
            x = block(x, tokens, masks[window], tables[window], cache=cache)
        if self.final_norm is not None:
            x = self.final_norm(x)
        wanted = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return x, cache, (*states, x) if wanted else None

    def _layout(self, tokens, attention_mask, positions, past):
        """Which tokens are no padding, the document of each new one, and its position; None where all are alike."""
        b, t = tokens.shape
        if self.config.position == "learned" and past + t > self.config.max_position_embeddings:
            limit = self.config.max_position_embeddings
            raise ValueError(f"a text of {past + t} tokens is longer than the model's context of {limit} tokens")
        shape = getattr(attention_mask, "shape", None)  # a static cache comes with a dictionary of masks
        if attention_mask is not None and shape != (b, past + t):
            raise ValueError(
                f"attention_mask is of shape {shape}; it must be {(b, past + t)}, with a number for each token of each "
                "text so far (static caches are not supported)"
            )
        attended = None if attention_mask is None or bool(attention_mask.all()) else attention_mask.bool()
        documents = None
        if positions is not None:
            positions = positions.expand(b, t)
            starts = (positions == 0).cumsum(-1)
            if attention_mask is None and past == 0 and bool((starts != starts[:, :1]).any()):
                documents = starts
        elif attended is not None:
            positions = (attended.long().cumsum(-1) - 1).clamp(min=0)[:, -t:]
        else:
            positions = torch.arange(past, past + t, device=tokens.device).expand(b, t)
        return attended, documents, positions

    def _embed(self, tokens, positions, past, cache):
        """What the first block reads [b, t, hidden]."""
        config, t = self.config, tokens.size(1)
        if self.smear is not None and cache is not None:
            # ids lie in a layer of the cache behind those of the blocks, and are reordered and cut with them
            while len(cache.layers) <= config.num_layers:
                cache.layers.append(DynamicLayer())
            ids = tokens[:, None, :, None]
            seen = cache.update(ids, ids, config.num_layers)[0][:, 0, :, 0]
            if past > 0:  # the token before the new ones is embedded again, for the first of them to look at
                tokens = seen[:, -t - 1 :]
                positions = torch.cat([(positions[:, :1] - 1).clamp(min=0), positions], dim=1)
        x = self.embedding(tokens)
        if config.scale_embeddings:
            x = x * torch.full((), math.sqrt(config.hidden_size), dtype=x.dtype, device=x.device)
        if self.position_embedding is not None:
            x = x + self.position_embedding(positions)
        elif config.position == "sinusoidal":
            x = x + sinusoids(positions, config.hidden_size).to(x.dtype)
        x = self.dropout(x)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        return x if self.smear is None else self.smear(x, positions)[:, -t:]


class LitLLMForCausalLM(LitLLMPreTrainedModel, GenerationMixin):
    """The language model."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"head.weight": "embedding.weight"}

    def __init__(self, config: LitLLMConfig):
        super().__init__(config, config.embedding_rows)

    def get_output_embeddings(self):
        """The head."""
        return self.head

    def set_output_embeddings(self, value):
        """Replace the head."""
        self.head = value

    @can_return_tuple
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        labels=None,
        use_cache=None,
        output_hidden_states=None,
        logits_to_keep=0,
        cache=None,
        **kwargs,
    ):
        """Logits [b, t, vocab_size], with `labels` the loss; arguments as for `read` and as everywhere in transformers.

        Raises:
            ValueError: an argument is of a kind that the model does not take.
        """
        cache = past_key_values if cache is None else cache
        x, cache, states = self.read(
            input_ids, attention_mask, position_ids, cache, use_cache, output_hidden_states, kwargs
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.head(x[:, kept])[..., : self.config.vocab_size]
        cap = self.config.logits_softcap
        if cap is not None:
            logits = cap * torch.tanh(at_least_float32(logits) / cap)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, hidden_states=states, **{CACHE: cache})


class LitLLMForSequenceClassification(LitLLMPreTrainedModel):
    """The reward model: scores at the last token of each text."""

    def __init__(self, config: LitLLMConfig):
        config.output, config.tie_word_embeddings = "score", False
        config.logits_softcap, config.value_head = None, False
        super().__init__(config, config.num_labels)

    @can_return_tuple
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        labels=None,
        use_cache=False,
        output_hidden_states=None,
        cache=None,
        **kwargs,
    ):
        """Scores [b, num_labels]; the last token is found by the mask, or without one by the id of padding."""
        cache = past_key_values if cache is None else cache
        x, cache, states = self.read(
            input_ids, attention_mask, position_ids, cache, use_cache, output_hidden_states, kwargs
        )
        t, pad = input_ids.size(1), self.config.pad_token_id
        logits = at_least_float32(self.head(x))
        if attention_mask is not None:
            real = attention_mask[:, -t:].bool()
        else:
            real = torch.ones_like(input_ids, dtype=torch.bool) if pad is None else input_ids != pad
        last = torch.where(real, torch.arange(t, device=x.device), 0).amax(dim=1)
        pooled = logits[torch.arange(len(last), device=x.device), last]
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, pooled_logits=pooled, config=self.config)
        return SequenceClassifierOutputWithPast(loss=loss, logits=pooled, hidden_states=states, **{CACHE: cache})
