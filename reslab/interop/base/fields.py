"""Fields of a `config.json`: types, defaults, and what reslab supports of them."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from reslab.core.errors import ReslabError

# A config without the field is refused.
REQUIRED: Any = object()

# Fields that do not change what a model computes when it is evaluated.
_IGNORED = """
    _num_labels is_llama_config output_past unsloth_fixed unsloth_version xla_device
    architectures auto_map attn_implementation _attn_implementation _name_or_path
    _commit_hash model_type transformers_version transformers.js_config dtype
    torch_dtype use_cache cache_implementation initializer_range initializer_factor
    embedding_initializer_range pretraining_tp gradient_checkpointing
    attention_dropout attention_probs_dropout_prob hidden_dropout hidden_dropout_prob
    attn_pdrop embd_pdrop resid_pdrop output_attentions output_hidden_states
    return_dict return_dict_in_generate bos_token_id eos_token_id pad_token_id
    sep_token_id unk_token_id decoder_start_token_id forced_bos_token_id
    forced_eos_token_id bos_token eos_token tokenizer_class prefix id2label label2id
    num_labels problem_type finetuning_task task_specific_params custom_pipelines
    chunk_size_feed_forward is_encoder_decoder torchscript tf_legacy_loss use_bfloat16
    max_length min_length do_sample early_stopping num_beams num_beam_groups
    diversity_penalty temperature top_k top_p typical_p repetition_penalty
    length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    num_return_sequences output_scores remove_invalid_values suppress_tokens
    begin_suppress_tokens exponential_decay_length_penalty
"""
IGNORED = frozenset(_IGNORED.split())


@dataclasses.dataclass(frozen=True)
class Known:
    """A field that a family's table knows.

    Attributes:
      kind: "whole" (from 1), "count" (from 0), "number", "flag", "text", "list" or
        "any".
      default: Value where it is absent or null: any, a function of the other fields,
        or `REQUIRED`.
      values: The values that are supported; () is any.
    """

    kind: str
    default: Any = REQUIRED
    values: tuple[Any, ...] = ()

    @property
    def is_single(self) -> bool:
        """Returns whether one value alone is supported, and none is the default."""
        return self.default is REQUIRED and len(self.values) == 1

    def check(self, name: str, value: Any) -> Any:
        """Returns a value of the field, of the right type.

        Raises:
          ReslabError: If it is another, or unsupported.
        """
        where = f"config.json: {name}"
        right, words = {
            "whole": (
                type(value) is int and 0 < value < 2**31,
                "a whole number above 0",
            ),
            "count": (type(value) is int and value >= 0, "a whole number from 0"),
            "any": (True, ""),
            "number": (_is_number(value), "a number"),
            "flag": (isinstance(value, bool), "true or false"),
            "text": (isinstance(value, str), "a text"),
            "list": (isinstance(value, list | tuple), "a list"),
        }[self.kind]
        if not right:
            if self.kind == "whole" and type(value) is int and value > 0:
                words = "a number of at most 31 bits"
            raise ReslabError(where, expected=words, got=repr(value))
        if self.values and value not in self.values:
            names = [repr(one) for one in self.values]
            raise ReslabError(
                f"{where} is not supported",
                expected=" or ".join(names),
                got=repr(value),
            )
        return float(value) if self.kind == "number" else value


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def whole(default: Any = REQUIRED) -> Known:
    """A count, at least 1."""
    return Known("whole", default)


def number(default: Any = REQUIRED) -> Known:
    """A finite number."""
    return Known("number", default)


def flag(default: bool = False) -> Known:
    """True or false."""
    return Known("flag", default)


def only(value: bool) -> Known:
    """A switch that reslab supports in one position."""
    return Known("flag", value, (value,))


def text(*values: str, default: Any = REQUIRED) -> Known:
    """One of some words."""
    return Known("text", default, values)


def listing(default: Callable[[Mapping[str, Any]], Any]) -> Known:
    """A list with an entry for each layer."""
    return Known("list", default)


def read(
    config: Mapping[str, Any], known: Mapping[str, Known], others: Iterable[str] = ()
) -> dict[str, Any]:
    """Reads the fields of a config, with the defaults of those that are absent.

    Args:
      config: The content of `config.json`.
      known: The fields of the family, in the order in which defaults are found.
      others: Names that the family reads itself.

    Returns:
      A value for every known field.

    Raises:
      ReslabError: If a field is missing, of another type, unsupported or unknown.
    """
    found: dict[str, Any] = {}
    for name, field in known.items():
        value = config.get(name)
        if value is None and field.default is REQUIRED:
            raise ReslabError(
                f"config.json has no {name}", hint="the whole config.json"
            )
        if value is None:
            value = field.default(found) if callable(field.default) else field.default
        found[name] = value if value is None else field.check(name, value)
    unknown = config.keys() - known.keys() - IGNORED - set(others)
    for name in sorted(unknown):
        if config[name] not in (None, False, {}, [], ""):
            raise ReslabError(
                f"config.json: {name} is not supported", got=repr(config[name])
            )
    return found
