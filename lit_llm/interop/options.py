"""`Options` reads a foreign config.json so that no option of it is passed over in silence."""

from __future__ import annotations

from typing import Any

from lit_llm.config import UserError
from lit_llm.config.serialization import shown
from lit_llm.interop.harmless import is_harmless

_NAMES = """
architectures transformers_version dtype torch_dtype _name_or_path name_or_path use_cache initializer_range
bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id cache_implementation
output_attentions output_hidden_states return_dict return_dict_in_generate output_scores torchscript use_bfloat16
attn_implementation _attn_implementation _attn_implementation_autoset gradient_checkpointing is_decoder
finetuning_task id2label label2id num_labels problem_type task_specific_params tokenizer_class prefix
chunk_size_feed_forward pretraining_tp is_llama_config transformers.js_config unsloth_fixed unsloth_version
n_ctx reorder_and_upcast_attn
summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout
max_length min_length max_new_tokens do_sample early_stopping num_beams num_beam_groups diversity_penalty
temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
encoder_no_repeat_ngram_size bad_words_ids num_return_sequences forced_bos_token_id forced_eos_token_id
remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
"""
USUAL = frozenset(_NAMES.split())
"""Keys that transformers writes, or once wrote, into every config.json. They say nothing about how logits are computed,
and are passed over without a message."""

NEUTRAL: dict[str, Any] = {
    "is_encoder_decoder": False,
    "tie_encoder_decoder": False,
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "pruned_heads": {},
    "partial_rotary_factor": 1.0,
    "rope_interleaved": False,
    "quantization_config": None,
    "use_mrope": False,
}
"""Our decoder computes what each of these keys means with this value, or where it is absent or null."""


class Options:
    """The keys of a config.json; `finish` refuses those that nobody has asked for.

    Args:
        values: the content of the file.
    """

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values
        self._left = set(values)
        self._passed_over: set[str] = set()

    def take(self, key: str, default: Any = None) -> Any:
        """Give the value of a key, or `default` where the file has none."""
        self._left.discard(key)
        return self._values.get(key, default)

    def only(self, key: str, *accepted: Any) -> None:
        """Refuse any value of a key except these; the first is what an absent key means.

        Raises:
            UserError: the key has another value.
        """
        value = self.take(key, accepted[0])
        if value not in accepted:
            raise UserError(f"{key} {shown(value)} is not supported (only {' or '.join(map(repr, accepted))})")

    def pass_over(self, key: str, *silently: Any) -> None:
        """Pass over a key that says nothing about logits; `finish` names it unless its value is one of `silently`."""
        if self.take(key) not in (None, *silently):
            self._passed_over.add(key)

    def finish(self) -> list[str]:
        """Refuse the keys that nobody has asked for and that could change what the model computes.

        Returns:
            The names of the keys that were passed over, in order, without those that every file has.

        Raises:
            UserError: there are such keys; the message names them.
        """
        for key, neutral in NEUTRAL.items():
            self.only(key, neutral, None)
        left = self._left - USUAL
        unknown = sorted(key for key in left if not is_harmless(key, self._values[key]))
        if unknown:
            names = ", ".join(unknown[:20]) + " ..." * (len(unknown) > 20)
            raise UserError(
                f"the option{'s' * (len(unknown) > 1)} {names} of this model "
                f"{'are' if len(unknown) > 1 else 'is'} not supported; delete from the file what does not change "
                "how logits are computed"
            )
        return sorted(self._passed_over | left)
