"""TeleChat inside transformers (extra `hf`).

After `import telechat.hf`, `AutoConfig`, `AutoModelForCausalLM` and `AutoTokenizer` load every TeleChat
folder with the classes defined here, whatever code the folder carries: that code is never imported, not even
with `trust_remote_code=True`. The mathematics is `telechat.models`, the text is `telechat.tokenizer`; nothing
else in telechat needs this package or transformers.
"""

from __future__ import annotations

from telechat.errors import MissingExtraError

try:
    import transformers as _transformers  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "transformers":
        raise
    raise MissingExtraError("transformers", "hf") from error

from telechat.hf.chat import ChatError, History
from telechat.hf.config import TelechatConfig
from telechat.hf.model import TelechatForCausalLM
from telechat.hf.register import register
from telechat.hf.tokenizer import TelechatTokenizer

register()

__all__ = ["ChatError", "History", "TelechatConfig", "TelechatForCausalLM", "TelechatTokenizer"]
