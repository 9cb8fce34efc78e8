"""The names of a composed model's weights on disk, the same in every release of transformers.

    model.encoders.0. ...      and model.experts, model.tokens, model.connector, model.coupling: as the modules are called
    model.language_model. ...  the language model without its output layer, as its own class calls its weights
    lm_head. ...               the output layer; left out where it is the embeddings

So the names in memory are the names on disk, and nothing of ours is renamed when a model is written. Two older spellings are
read as well; in both the language model still held its output layer:

    model.language_model.model. ...        and model.language_model.lm_head, which were the names in memory
    model.language_model.model.model. ...  and model.language_model.model.lm_head, which transformers 5.23 made of them

transformers remembers the renamings by which a model was read, and turns them round when it writes the model. That would bring
the old names back, so they are forgotten; those that belong to one part (a mixture of experts, whose files hold every expert by
itself) stay.
"""

from __future__ import annotations

import os
import re
from typing import Any, ClassVar

from transformers import PreTrainedConfig
from transformers.core_model_loading import WeightConverter

from tessera.models.vision import TesseraPreTrainedModel

OUTER = "language_model"
HEAD = "lm_head"

_HEADS = (HEAD, "embed_out")
"""What transformers' causal language models call their output layer, in memory or on disk."""
_OF_THE_HUB = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


def renamings(text: PreTrainedConfig | None) -> dict[str, str]:
    """Pattern -> replacement, for transformers' `key_mapping`, from both older spellings to today's.

    text: the language model's configuration, which says by what name its class called the model without an output layer; None
    where it is not known: the usual one.
    """
    inner, heads = _old_names(text)
    old = rf"{OUTER}\.(?:model\.)?"
    head = "|".join(map(re.escape, heads))
    return {
        rf"^(?:model\.)?{old}(?:{head})\.": f"{HEAD}.",
        rf"^model\.{old}{re.escape(inner)}\.": f"model.{OUTER}.",
        rf"^{old}{re.escape(inner)}\.": f"{OUTER}.",  # a folder of the model without its output layer
    }


def _old_names(text: PreTrainedConfig | None) -> tuple[str, tuple[str, ...]]:
    """(attribute of a causal language model that holds the model without an output layer, attributes of the output layer)."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    found: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(text), None) if text is not None else None
    if found is None:
        return "model", _HEADS
    tied: Any = getattr(found, "_tied_weights_keys", None) or {}
    own = (key.removesuffix(".weight") for key in tied if re.fullmatch(r"[\w.]+\.weight", key))
    return found.base_model_prefix or "model", tuple(dict.fromkeys([*_HEADS, *own]))


def keep_own_names(model: Any) -> None:
    """Makes transformers write the weights of a composed model under the names that they have in memory, however it was read.

    What transformers does to single parts (`scope_prefix`), and conversions that change more than names, stay.
    """
    known = getattr(model, "_weight_conversions", None)
    if known is not None:
        model._weight_conversions = [c for c in known if isinstance(c, WeightConverter) or c.scope_prefix is not None]


class ComposedPreTrainedModel(TesseraPreTrainedModel):
    """A composed model, with or without its output layer: reads every spelling of its names, writes one."""

    config_class: ClassVar[Any]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Transformers' own; weights may have any of the names in `tessera.models.names`."""
        config = kwargs.get("config")
        if not isinstance(config, PreTrainedConfig):
            config = cls._described(pretrained_model_name_or_path if config is None else config, kwargs)
        given = kwargs.pop("key_mapping", None) or {}
        kwargs["key_mapping"] = {**given, **renamings(getattr(config, "text_config", None))}
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def _described(cls, where: Any, options: dict[str, Any]) -> PreTrainedConfig | None:
        """The configuration at `where`, None where there is none (a folder of adapters only, say)."""
        if not isinstance(where, (str, os.PathLike)):
            return None
        wanted = {name: options[name] for name in _OF_THE_HUB if name in options}
        try:
            found: PreTrainedConfig = cls.config_class.from_pretrained(where, **wanted)
        except OSError:  # transformers says it better in a moment
            return None
        return found

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """Transformers' own, with the names of `tessera.models.names`."""
        keep_own_names(self)
        return super().save_pretrained(save_directory, *args, **kwargs)
