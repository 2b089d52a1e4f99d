"""Tokenizers and conversation formats of the TeleChat family.

Knows the vocabularies (byte-level BPE and sentencepiece), the control tokens, and how each generation writes
a conversation. Knows nothing about models or torch.
"""

from telechat.tokenizer.chat_formats import CHAT_FORMATS, ChatFormat
from telechat.tokenizer.load import load_tokenizer
from telechat.tokenizer.special import SpecialTokens
from telechat.tokenizer.stream import StreamDecoder
from telechat.tokenizer.tokenizer import Tokenizer, check_fits

__all__ = [
    "CHAT_FORMATS",
    "ChatFormat",
    "SpecialTokens",
    "StreamDecoder",
    "Tokenizer",
    "check_fits",
    "load_tokenizer",
]
