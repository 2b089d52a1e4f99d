"""Reading and editing a sentencepiece `tokenizer.model` at the level of its serialised pieces.

The library offers no way to stop it from recognising user-defined pieces in text; turning them into control
pieces in a copy of the model does, because control pieces are never produced from text. The file is a
protocol buffer, of which this module understands exactly what that needs: the list of pieces (field 1), each
with a name (field 1) and a type (field 3); and three facts that the library keeps to itself. Knows nothing
about which pieces ought to be hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from telechat.errors import TokenizerError

if TYPE_CHECKING:
    import sentencepiece

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_PIECES_FIELD, _NAME_FIELD, _TYPE_FIELD = 1, 1, 3
_TRAINER_FIELD, _NORMALIZER_FIELD = 2, 3
_MODEL_TYPE_FIELD, _DUMMY_PREFIX_FIELD = 3, 3
_CONTROL_TYPE, _USER_DEFINED_TYPE = 3, 4
_BPE_MODEL = 2


@dataclass(frozen=True)
class PieceFacts:
    """What the library does not tell about a model.

    Attributes:
        user_defined_ids: pieces that are recognised in text before anything is merged.
        is_bpe: pieces are merged by rank, not chosen by likelihood.
        adds_dummy_prefix: text is encoded with a space before it.
    """

    user_defined_ids: frozenset[int]
    is_bpe: bool
    adds_dummy_prefix: bool


def read_facts(model: bytes) -> PieceFacts:
    """The facts of a serialised model that the library has accepted."""
    user_defined, number = set(), 0
    model_type, adds_prefix = 1, True
    for field, _, body, end in _fields(model):
        if field == _PIECES_FIELD:
            if _number(model[body:end], _TYPE_FIELD, 1) == _USER_DEFINED_TYPE:
                user_defined.add(number)
            number += 1
        elif field == _TRAINER_FIELD:
            model_type = _number(model[body:end], _MODEL_TYPE_FIELD, model_type)
        elif field == _NORMALIZER_FIELD:
            adds_prefix = bool(_number(model[body:end], _DUMMY_PREFIX_FIELD, int(adds_prefix)))
    return PieceFacts(frozenset(user_defined), model_type == _BPE_MODEL, adds_prefix)


def _number(message: bytes, wanted: int, default: int) -> int:
    found = [_read_varint(message, body)[0] for field, _, body, _ in _fields(message) if field == wanted]
    return found[-1] if found else default


def load_processor(model: bytes, source: Path) -> sentencepiece.SentencePieceProcessor:
    """A sentencepiece processor for a serialised model.

    Raises:
        TokenizerError: the bytes are not a sentencepiece model.
    """
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
    except (RuntimeError, OSError, TypeError, ValueError) as error:
        raise TokenizerError(
            f"{source} is not a readable sentencepiece model ({len(model)} bytes).",
            hint="Download tokenizer.model again; it may be truncated or a Git LFS pointer.",
        ) from error
    return processor


def with_control_pieces(model: bytes, names: frozenset[str]) -> bytes:
    """A copy of the model in which the pieces called `names` are control pieces; ids stay the same."""
    wanted = {name.encode() for name in names}
    copied = bytearray()
    for field, start, body, end in _fields(model):
        if field == _PIECES_FIELD and _piece_name(model[body:end]) in wanted:
            piece = _as_control(model[body:end])
            copied += _varint(_PIECES_FIELD << 3 | _BYTES) + _varint(len(piece)) + piece
        else:
            copied += model[start:end]
    return bytes(copied)


def _piece_name(piece: bytes) -> bytes:
    if len(piece) > 1 and piece[0] == (_NAME_FIELD << 3 | _BYTES) and piece[1] < 0x80:
        return piece[2 : 2 + piece[1]]  # the usual layout, without walking all fields
    return next((piece[body:end] for field, _, body, end in _fields(piece) if field == _NAME_FIELD), b"")


def _as_control(piece: bytes) -> bytes:
    others = b"".join(piece[start:end] for field, start, _, end in _fields(piece) if field != _TYPE_FIELD)
    return others + _varint(_TYPE_FIELD << 3 | _VARINT) + _varint(_CONTROL_TYPE)


def _fields(message: bytes) -> Iterator[tuple[int, int, int, int]]:
    """(field number, start of the tag, start of the content, end) of every field of a message."""
    position = 0
    while position < len(message):
        start = position
        tag, position = _read_varint(message, position)
        kind = tag & 7
        body = position
        if kind == _VARINT:
            _, position = _read_varint(message, position)
        elif kind == _BYTES:
            length, body = _read_varint(message, position)
            position = body + length
        else:
            assert kind in (_FIXED64, _FIXED32), kind  # the library parsed this model before us
            position += 8 if kind == _FIXED64 else 4
        yield tag >> 3, start, body, position


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
