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
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    SequenceClassifierOutputWithPast,
)
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

# newer versions of transformers call `past_key_values` of arguments and outputs `cache`
CACHE = "cache" if "cache" in {field.name for field in fields(CausalLMOutputWithPast)} else "past_key_values"


class LitLLMPreTrainedModel(PreTrainedModel):
    """What the classes below have in common."""

    config_class = LitLLMConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["Block"]
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values", "cache"]
    _supports_sdpa = True

    def resize_token_embeddings(self, new_num_tokens=None, pad_to_multiple_of=None, mean_resizing=True):
        """Change the number of tokens, in the embeddings of values, too."""
        before = self.get_input_embeddings().num_embeddings
        embedding = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        if embedding.num_embeddings != before:
            for block in self.base_model.blocks:
                if block.attention.value_embedding is not None:
                    block.attention.value_embedding = self._get_resized_embeddings(
                        block.attention.value_embedding, embedding.num_embeddings, mean_resizing=mean_resizing
                    )
        return embedding

    def _init_weights(self, module):
        """Draw what a file lacks. A whole new model is better begun by lit_llm, which scales by depth, too."""
        super()._init_weights(module)
        if isinstance(module, OffsetRMSNorm):
            nn.init.zeros_(module.weight)
        elif isinstance(module, TokenSmear):
            nn.init.zeros_(module.strength)
        elif isinstance(module, LitLLMModel) and module.stream_share is not None:
            nn.init.ones_(module.stream_share)
            nn.init.zeros_(module.shortcut_share)


class LitLLMModel(LitLLMPreTrainedModel):
    """Embedding, blocks and norm."""

    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"^(head|score|value_head)\.weight$"]

    def __init__(self, config: LitLLMConfig):
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
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
        self.post_init()

    def get_input_embeddings(self):
        """The embedding of tokens."""
        return self.embedding

    def set_input_embeddings(self, value):
        """Replace the embedding of tokens."""
        self.embedding = value

    @can_return_tuple
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        use_cache=None,
        output_hidden_states=None,
        cache=None,
        **kwargs,
    ):
        """Read tokens.

        Args:
            input_ids: new ids [b, t].
            attention_mask: 1 at tokens and 0 at padding [b, past + t]; None where nothing is padding.
            position_ids: of the new tokens [b, t]; None counts the tokens that are no padding. Where no mask is given,
                a document begins at each 0, and documents do not see each other.
            past_key_values: the cache of the tokens before, which is extended.
            use_cache: whether to make a cache where none is given; None: as configured, and not in training.
            output_hidden_states: whether the states before each block and at the end are returned; None: as configured.
            cache: another name for `past_key_values`.
            kwargs: what transformers hands on besides.

        Returns:
            Normed hidden states [b, t, hidden], the cache and the states.

        Raises:
            ValueError: an argument is of a kind that the model does not take, or the text is too long.
        """
        if input_ids is None or kwargs.get("inputs_embeds") is not None:
            raise ValueError("this model reads token ids (input_ids): its layers embed them a second time")
        if kwargs.get("output_attentions"):
            raise ValueError("attention weights are not kept: the fused kernel does not give them")
        config, t = self.config, input_ids.size(1)
        cache = past_key_values if cache is None else cache
        if cache is None and (config.use_cache and not self.training if use_cache is None else use_cache):
            cache = DynamicCache(config=config)
        past = cache.get_seq_length() if cache is not None else 0
        attended, documents, positions = self._layout(input_ids, attention_mask, position_ids, past)
        x = self._embed(input_ids, positions, past, cache)
        masks = attention_masks(config.windows, t, past, attended, documents, x.device)
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
            x = block(x, input_ids, masks[window], tables[window], cache=cache)
        if self.final_norm is not None:
            x = self.final_norm(x)
        wanted = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        states = (*states, x) if wanted else None
        return BaseModelOutputWithPast(last_hidden_state=x, hidden_states=states, **{CACHE: cache})

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

    _tied_weights_keys: ClassVar[dict[str, str]] = {"head.weight": "model.embedding.weight"}

    def __init__(self, config: LitLLMConfig):
        super().__init__(config)
        self.model = LitLLMModel(config)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.value_head = nn.Linear(config.hidden_size, 1, bias=False) if config.value_head else None
        self.post_init()

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
        """Logits [b, t, vocab_size], and the loss where `labels` [b, t] are given (-100 where nothing is learned).

        The other arguments are those of `LitLLMModel.forward`; `logits_to_keep` is how many logits at the end, or
        which, are computed, where 0 means all.
        """
        reading = {"past_key_values": past_key_values, "cache": cache, "use_cache": use_cache}
        refused = {name: kwargs.get(name) for name in ("inputs_embeds", "output_attentions")}
        read = self.model(
            input_ids, attention_mask, position_ids, output_hidden_states=output_hidden_states, **reading, **refused
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.head(read.last_hidden_state[:, kept])
        cap = self.config.logits_softcap
        if cap is not None:
            logits = cap * torch.tanh(at_least_float32(logits) / cap)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, hidden_states=read.hidden_states, **{CACHE: getattr(read, CACHE)}
        )


class LitLLMForSequenceClassification(LitLLMPreTrainedModel):
    """The reward model: scores at the last token of each text."""

    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"^(head|value_head)\.weight$"]  # of a language model

    def __init__(self, config: LitLLMConfig):
        config.output, config.tie_word_embeddings = "score", False
        config.logits_softcap, config.value_head = None, False
        super().__init__(config)
        self.model = LitLLMModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        labels=None,
        output_hidden_states=None,
        **kwargs,
    ):
        """Scores [b, num_labels]; the last token is found by the mask, or without one by the id of padding.

        The other arguments are those of `LitLLMModel.forward`.
        """
        kwargs["use_cache"] = kwargs.get("use_cache") or False
        read = self.model(input_ids, attention_mask, position_ids, output_hidden_states=output_hidden_states, **kwargs)
        logits = at_least_float32(self.score(read.last_hidden_state))
        t, pad = input_ids.size(1), self.config.pad_token_id
        if attention_mask is not None:
            real = attention_mask[:, -t:].bool()
        else:
            real = torch.ones_like(input_ids, dtype=torch.bool) if pad is None else input_ids != pad
        last = torch.where(real, torch.arange(t, device=real.device), 0).amax(dim=1)
        pooled = logits[torch.arange(len(last), device=logits.device), last.to(logits.device)]
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, pooled_logits=pooled, config=self.config)
        return SequenceClassifierOutputWithPast(
            loss=loss, logits=pooled, hidden_states=read.hidden_states, **{CACHE: getattr(read, CACHE)}
        )
