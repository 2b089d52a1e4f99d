"""`TelechatTokenizer`: our tokenizers of every generation with the interface of a transformers tokenizer.

`tokenizer(text)` does what the official tokenizer does, control strings included; with
`split_special_tokens=True` they stay text. `apply_chat_template` builds ids and never lets content become a
control token. Knows nothing of models.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from transformers import AddedToken, PreTrainedTokenizer

from telechat.errors import PromptError, TokenizerError
from telechat.tokenizer import Tokenizer, load_tokenizer
from telechat.tokenizer.messages import check_tools, read_messages
from telechat.tokenizer.registered import registered_tokens

_NAMED = ("bos", "eos", "pad", "unk")


class TelechatTokenizer(PreTrainedTokenizer):
    """A TeleChat tokenizer for transformers.

    Args:
        vocab_file: a `tokenizer.model` (sentencepiece), or None.
        tokenizer_file: a `tokenizer.json` (byte-level BPE), read when there is no `vocab_file`. The other
            files of the tokenizer are looked for beside it.
        **kwargs: contents of `tokenizer_config.json`.

    Attributes:
        telechat: the tokenizer behind this one.

    Raises:
        TokenizerError: files that are missing or damaged.
    """

    # The generation config decides about control tokens and, on a hub, must be fetched as well.
    vocab_files_names: ClassVar[dict[str, str]] = {
        "vocab_file": "tokenizer.model",
        "tokenizer_file": "tokenizer.json",
        "generation_config_file": "generation_config.json",
    }
    model_input_names: ClassVar[list[str]] = ["input_ids", "attention_mask"]

    def __init__(
        self,
        vocab_file: str | None = None,
        tokenizer_file: str | None = None,
        generation_config_file: str | None = None,
        **kwargs: Any,
    ) -> None:
        source = vocab_file or tokenizer_file
        if source is None:
            folder = kwargs.get("name_or_path") or "The folder"
            raise TokenizerError(
                f"{folder} holds neither tokenizer.model nor tokenizer.json.",
                hint="Copy the tokenizer files of the model into the folder.",
            )
        self.vocab_file, self.tokenizer_file = vocab_file, tokenizer_file
        self.telechat: Tokenizer = load_tokenizer(Path(source).parent, chat_format=kwargs.get("chat_format"))
        self._vocab: dict[str, int] | None = None
        for role in _NAMED:
            token_id = getattr(self.telechat.special, role)
            if token_id is not None and kwargs.get(f"{role}_token") is None:
                kwargs[f"{role}_token"] = self.telechat.id_to_token(token_id)
        # The original: left for the byte-level 7B, right for the sentencepiece models unless the config says
        # so.
        kwargs.setdefault("padding_side", "right" if vocab_file else "left")
        kwargs["chat_format"] = self.telechat.chat_format.name  # saved, so that it need not be found again
        kwargs["added_tokens_decoder"] = {**kwargs.get("added_tokens_decoder", {}), **self._registered()}
        kwargs.pop("auto_map", None)
        super().__init__(special_tokens_pattern="none", **kwargs)

    def _registered(self) -> dict[int, AddedToken]:
        """Tokens that the sentencepiece wrapper registers, with their quirks, so that saving keeps those."""
        path = self.telechat.folder / "tokenizer_config.json"
        if self.vocab_file is None or not path.is_file():
            return {}
        raw = json.loads(path.read_text(encoding="utf-8"))
        found = registered_tokens(raw, self.telechat.chat_format.name, self.telechat.token_to_id)
        return {
            token.token_id: AddedToken(
                token.content,
                single_word=token.single_word,
                lstrip=token.lstrip,
                rstrip=token.rstrip,
                normalized=False,
                special=token.is_special,
            )
            for token in found
        }

    @property
    def vocab_size(self) -> int:
        """Highest id of the files + 1; tokens added in transformers come after."""
        return self.telechat.vocab_size

    def get_vocab(self) -> dict[str, int]:
        """Token string -> id, added tokens included."""
        if self._vocab is None:
            names = ((self.telechat.id_to_token(i), i) for i in range(self.telechat.vocab_size))
            self._vocab = {name: i for name, i in names if name is not None}
        return {**self._vocab, **self._added_tokens_encoder}

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:
        """Token strings of `text`, as the official tokenizer cuts it.

        `split_special_tokens=True` keeps control strings as ordinary text.
        """
        parse_special = not kwargs.pop("split_special_tokens", self.split_special_tokens)
        known = self.telechat.token_to_id
        added = [token for token in self._added_tokens_encoder if known(token) is None]
        if not added or not parse_special:
            return self._names(text, parse_special)
        pattern = "(" + "|".join(re.escape(token) for token in sorted(added, key=len, reverse=True)) + ")"
        names: list[str] = []
        for piece in re.split(pattern, text):
            names += [piece] if piece in added else self._names(piece, parse_special)
        return names

    def _names(self, text: str, parse_special: bool) -> list[str]:
        return [
            str(self.telechat.id_to_token(i)) for i in self.telechat.encode(text, parse_special=parse_special)
        ]

    def _convert_token_to_id(self, token: str) -> int:
        token_id = self.telechat.token_to_id(token)
        unknown = self.telechat.special.unk
        if token_id is None and unknown is None:
            raise TokenizerError(f"The vocabulary has no token {token!r}.")
        return token_id if token_id is not None else int(unknown or 0)

    def _convert_id_to_token(self, index: int) -> str:
        return self.telechat.id_to_token(index) or ""

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Text of token strings."""
        return self._decode([self._convert_token_to_id_with_added_voc(token) for token in tokens])

    def _decode(self, token_ids: int | Sequence[int], skip_special_tokens: bool = False, **_: Any) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else [int(i) for i in token_ids]
        text, run = "", []
        for token_id in ids:
            token = self._added_tokens_decoder.get(token_id) if token_id >= self.vocab_size else None
            if token is None:
                run.append(token_id)
                continue
            text += self.telechat.decode(run, skip_special_tokens)
            text += "" if token.special and skip_special_tokens else token.content
            run = []
        return text + self.telechat.decode(run, skip_special_tokens)

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        tools: Sequence[Any] | None = None,
        documents: Sequence[Any] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        padding: bool | str = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Token ids of a conversation or a list of them, by the model's own chat format.

        Content never becomes a control token. `tokenize=False` gives the text instead, for reading: encoding
        that text again would take control strings in the content for control tokens. With a `chat_template`
        of your own, transformers does all of it, and this protection is its `sanitize_control_tokens`.

        Raises:
            PromptError: messages the format cannot express, or an option it does not have.
        """
        if chat_template is not None:
            return super().apply_chat_template(
                conversation,
                tools=tools,
                documents=documents,
                chat_template=chat_template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tokenize=tokenize,
                padding=padding,
                truncation=truncation,
                max_length=max_length,
                return_tensors=return_tensors,
                return_dict=return_dict,
                **kwargs,
            )
        _refuse_unknown({**kwargs, "documents": documents, "continue_final_message": continue_final_message})
        is_batch = bool(conversation) and not isinstance(conversation[0], Mapping)
        conversations = conversation if is_batch else [conversation]
        if not tokenize:
            texts = [self._render(messages, tools, add_generation_prompt) for messages in conversations]
            return texts if is_batch else texts[0]
        ids = [self.telechat.apply_chat_template(one, tools, add_generation_prompt) for one in conversations]
        if truncation and max_length is not None:
            cut = slice(-max_length, None) if self.truncation_side == "left" else slice(max_length)
            ids = [one[cut] for one in ids]
        batch = self.pad(
            {"input_ids": ids if is_batch or return_tensors else ids[0]},
            padding=padding,
            max_length=max_length,
            return_tensors=return_tensors,
        )
        return batch if return_dict else batch["input_ids"]

    def _render(self, messages: Any, tools: Any, add_generation_prompt: bool) -> str:
        parts = self.telechat.chat_format.render(
            read_messages(messages),
            check_tools(tools),
            add_generation_prompt=add_generation_prompt,
            official=False,
        )
        return "".join(part.text for part in parts)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Copy the vocabulary file; returns its new path."""
        source = Path(str(self.vocab_file or self.tokenizer_file))
        target = Path(save_directory) / (f"{filename_prefix}-" if filename_prefix else "")
        target = target.with_name(target.name + source.name) if filename_prefix else target / source.name
        if source.resolve() != target.resolve():
            shutil.copyfile(source, target)
        return (str(target),)


def _refuse_unknown(options: Mapping[str, Any]) -> None:
    """Refuse what a chat template of transformers may be told, and ours may not.

    Raises:
        PromptError: names it.
    """
    # Control tokens are always kept out of the content.
    unknown = [name for name, value in options.items() if value and name != "sanitize_control_tokens"]
    if unknown:
        raise PromptError(
            f"TeleChat's chat format has no {', '.join(unknown)}.",
            hint="Leave it out, or pass a chat_template of your own.",
        )


def telechat_tokenizer(tokenizer: Any) -> Tokenizer:
    """Our tokenizer behind whatever was handed in.

    Raises:
        TokenizerError: a tokenizer of another kind that does not come from a TeleChat folder.
    """
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    if isinstance(tokenizer, TelechatTokenizer):
        return tokenizer.telechat
    folder = Path(str(getattr(tokenizer, "name_or_path", "") or ""))
    if str(folder) == "." or not folder.is_dir():
        raise TokenizerError(
            f"The tokenizer is a {type(tokenizer).__name__}, which does not know TeleChat's control tokens.",
            hint="Load it with AutoTokenizer.from_pretrained(folder) after import telechat.hf.",
        )
    return load_tokenizer(folder)
