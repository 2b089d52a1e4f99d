"""Are the tensors of a checkpoint those of the model? Names, shapes and dtypes against the parameter table.

Reads headers only, except where a tied head is stored all the same. A tensor that is missing, extra or of
another shape is an error that names it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch

from telechat.checkpoint.ascend import AscendFormat
from telechat.checkpoint.names import EMBEDDING, HEAD, canonical_names
from telechat.checkpoint.packed import Expected, PackedFormat
from telechat.checkpoint.weights import FLOATS, StoredWeights
from telechat.device import dtype_name
from telechat.errors import CheckpointError
from telechat.models import TeleChatConfig, parameter_table
from telechat.models.parameters import Parameter
from telechat.models.quantized import is_quantisable


def match_tensors(
    config: TeleChatConfig,
    weights: StoredWeights,
    packing: PackedFormat | None = None,
    table: Sequence[Parameter] | None = None,
) -> dict[str, str]:
    """Name by the table -> name on disk of every tensor to read, having checked names, shapes and dtypes.

    With a `packing`, each linear layer or head may be stored in integers; the format names them.

    Args:
        table: the parameters that should be there, if it is one rank's part; by default all of the model's.

    Raises:
        CheckpointError: a tensor is missing, extra, misshapen or of a wrong dtype; names it.
    """
    names = canonical_names(weights.tensors)
    if isinstance(packing, AscendFormat):
        packing.check_names(weights.tensors)
    table = parameter_table(config) if table is None else table
    layers = packed_layers(table, names, packing)
    expected = _expected(table, layers)
    if packing is not None:
        for name in layers:
            if packing.holds_bias(name, names):
                expected.pop(name.removesuffix("weight") + "bias", None)
    if config.tie_word_embeddings and HEAD in names:
        _check_tied_head(weights, names)
        del names[HEAD]
    missing = [name for name in expected if name not in names]
    if missing:
        raise CheckpointError(f"The checkpoint lacks {_listed(missing)}.", hint=_missing_hint(missing))
    extra = [names[name] for name in names if name not in expected]
    if extra:
        raise CheckpointError(
            f"The checkpoint holds {_listed(extra)}, which this model has no place for.",
            hint="Check that config.json belongs to these weights.",
        )
    for name, (shape, dtypes) in expected.items():
        stored = weights.tensors[names[name]]
        if not _fits(stored.shape, shape):
            wanted = ", ".join("any" if extent is None else str(extent) for extent in shape)
            raise CheckpointError(
                f"{stored.name} has shape {list(stored.shape)}; config.json says [{wanted}].",
                hint="Check that config.json belongs to these weights.",
            )
        if stored.dtype not in dtypes:
            wanted = "floating point" if set(dtypes) <= set(FLOATS) else dtype_name(dtypes[0])
            raise CheckpointError(f"{stored.name} has dtype {dtype_name(stored.dtype)}; expected {wanted}.")
    return names


def _fits(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(shape) == len(expected) and all(
        wanted in (None, extent) for extent, wanted in zip(shape, expected, strict=True)
    )


def packed_layers(
    table: Sequence[Parameter], names: Collection[str], packing: PackedFormat | None
) -> dict[str, Expected]:
    """Weight by the table -> the tensors it is stored in, of every weight that is stored in integers.

    Args:
        names: of the stored tensors, as the table spells them.

    Some writers give every quantised layer a bias; one that the model has no place for counts as one of the
    weight's tensors. That it is zero is checked when it is read.
    """
    if packing is None:
        return {}
    layers: dict[str, Expected] = {}
    biases = {parameter.name for parameter in table if parameter.kind == "bias"}
    for parameter in table:
        expected = (
            packing.expected(parameter.name, parameter.shape, names) if is_quantisable(parameter) else {}
        )
        if not expected:
            continue
        bias = parameter.name.removesuffix("weight") + "bias"
        if bias in names and bias not in biases:
            expected[bias] = (parameter.shape[:1], FLOATS)
        layers[parameter.name] = expected
    return layers


def _expected(table: Sequence[Parameter], layers: Mapping[str, Expected]) -> Expected:
    """Tensor by the table -> (shape, dtypes that will do)."""
    expected: Expected = {}
    for parameter in table:
        expected.update(layers.get(parameter.name) or {parameter.name: (parameter.shape, FLOATS)})
    return expected


def _check_tied_head(weights: StoredWeights, names: Mapping[str, str]) -> None:
    """A tied model may store its head all the same, but then it must be the embedding."""
    pair = dict(weights.stream({names[HEAD], names[EMBEDDING]})) if EMBEDDING in names else {}
    if len(pair) == 2 and not torch.equal(pair[names[HEAD]], pair[names[EMBEDDING]]):
        raise CheckpointError(
            f"config.json ties the head to the embedding, but {HEAD} differs from {names[EMBEDDING]}.",
            hint="Set tie_word_embeddings to false in config.json.",
        )


def _missing_hint(missing: list[str]) -> str:
    if missing == [HEAD]:
        return "If the head is the embedding, set tie_word_embeddings to true in config.json."
    return "Check that config.json belongs to these weights, and that the download is complete."


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more tensors"
