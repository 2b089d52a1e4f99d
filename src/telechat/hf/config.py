"""`TelechatConfig`: a TeleChat `config.json` as transformers wants to hold it.

Every key of the file is kept and saved again, with two exceptions: `auto_map` and `custom_pipelines` name
code in the model's folder, which is never run here and not copied by `save_pretrained`. What the keys mean is
the business of `telechat.models.TeleChatConfig`, which also checks them.
"""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import PreTrainedConfig

from telechat.models import TeleChatConfig

# Arguments of every `from_pretrained` that say where files come from.
HUB_ARGUMENTS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
)
_CODE_KEYS = ("auto_map", "custom_pipelines")
# Written by `to_hf` but not fields of their own: transformers sets the first, the class states the second,
# and the last two stand in the file only where they say something.
_NOT_FILLED_IN = ("architectures", "model_type", "telechat_rope", "moe_config")


class TelechatConfig(PreTrainedConfig):
    """Configuration with the official field names; absent ones get the official defaults.

    Raises:
        ConfigError: a value that cannot be, or a model that is not TeleChat.
    """

    model_type: ClassVar[str] = "telechat"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "seq_length",
    }

    def __init__(self, **kwargs: Any) -> None:
        given = {key: value for key, value in kwargs.items() if key not in _CODE_KEYS}
        fields = TeleChatConfig.from_hf({**given, "model_type": self.model_type}).to_hf()
        super().__init__(**given)
        # Set afterwards because transformers takes token ids and `use_cache` for generation settings and
        # drops them.
        for key, value in fields.items():
            if key not in _NOT_FILLED_IN:
                setattr(self, key, value if given.get(key) is None else given[key])

    def to_telechat(self) -> TeleChatConfig:
        """The same as the value that the rest of telechat uses.

        Raises:
            ConfigError: an attribute has been set to something that cannot be.
        """
        raw = {key: value for key, value in self.to_dict().items() if value is not None}
        raw.pop("architectures", None)  # a subclass may have any name
        return TeleChatConfig.from_hf({**raw, "model_type": self.model_type})
