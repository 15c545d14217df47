"""Put the recognised pieces together: embeddings, the two halves of a layer, their weights.

Here the probes decide what no pattern of nodes could: which table a row number belongs to, how
positions are counted, that the mask hides exactly the padded keys, which activation it is.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from toolkit.engine.operators import OPERATORS
from toolkit.engine.plan import Embeddings, Layer, LayerNorm
from toolkit.engine.reader.quantized import in_float, linear
from toolkit.engine.reader.symbols import (
    GRID,
    Affine,
    Array,
    Context,
    Dequantized,
    Hidden,
    Lookups,
    MismatchError,
    Pointwise,
    Probe,
    Scores,
    Shapes,
    Value,
    float32,
    owned,
)

HIDDEN_SCORE = -1e4  # exp of it is 0 in float32: a mask this low hides a key
PROJECTION_NOTE = "the projection of the embeddings runs in float32"
MIXED_NOTE = "query, key and value are not quantized alike"
ACTIVATION_ERROR = 1e-5  # the exact and the tanh GELU differ by 5e-4


def normalise(
    source: Any, gamma: Any, beta: Any, epsilon: Any, probes: Sequence[Probe]
) -> Value | None:
    """A complete LayerNorm: of the embeddings, or of one of the two residual sums of a layer."""
    if gamma is None or beta is None or epsilon is None:
        return None
    size = source.shapes[0][-1]
    if gamma.shape != (size,) or beta.shape != (size,) or not 0.0 < epsilon < 1.0:
        raise MismatchError(f"gamma and beta of {size} elements and a small positive epsilon")
    norm = LayerNorm(gamma, beta, float(epsilon))
    if isinstance(source, Lookups):
        return Hidden(_embeddings(source, norm, probes), (), None, source.shapes)
    base, branch = source.base, source.branch
    if isinstance(branch.source, Context):
        return _attention_half(base, branch, norm, source.shapes, probes)
    return _feed_forward_half(base, branch, norm, source.shapes)


def _attention_half(
    base: Any, branch: Affine, norm: LayerNorm, shapes: Shapes, probes: Sequence[Probe]
) -> Hidden:
    context = branch.source
    assert isinstance(context, Context)
    scores = context.scores
    state = base
    if isinstance(base, Affine) and isinstance(base.source, Hidden):  # ELECTRA's projection
        state = base.source
        projection = in_float(linear("embeddings.projection", base), PROJECTION_NOTE)
        projected = replace(state.embeddings, projection=projection)
        state = replace(state, embeddings=projected) if not state.layers else base
    if not isinstance(state, Hidden) or state.attention is not None:
        raise MismatchError("an encoder layer to start from the layer before it")
    if not (scores.query.source is scores.key.source is context.value.source is base):
        raise MismatchError("query, key and value of the hidden state that is added back here")
    if scores.query.shapes[0][-1] > shapes[0][-1]:
        raise MismatchError("heads that are together at most as wide as the hidden state")
    _check_mask(scores, probes)
    name = f"layers.{len(state.layers)}"
    affines = {"query": scores.query, "key": scores.key, "value": context.value}
    layers = {part: linear(f"{name}.{part}", affine) for part, affine in affines.items()}
    quantizations = [layer.quantization for layer in layers.values()]
    inputs = {q and q.of_input for q in quantizations}
    if len(inputs) > 1:  # the engine multiplies all three at once
        layers = {part: in_float(layer, MIXED_NOTE) for part, layer in layers.items()}
    attention = {
        **layers,
        "attention_output": linear(f"{name}.attention_output", branch),
        "attention_norm": norm,
        "num_heads": scores.num_heads,
        "scale": scores.scale,
    }
    return Hidden(state.embeddings, state.layers, attention, shapes)


def _feed_forward_half(base: Any, branch: Affine, norm: LayerNorm, shapes: Shapes) -> Hidden:
    assert isinstance(branch.source, Pointwise)
    inner = branch.source.source
    if not isinstance(base, Hidden) or base.attention is None or inner.source is not base:
        raise MismatchError("a feed-forward block that starts behind attention's LayerNorm")
    name = f"layers.{len(base.layers)}"
    layer = Layer(
        **base.attention,
        intermediate=linear(f"{name}.intermediate", inner),
        output=linear(f"{name}.output", branch),
        output_norm=norm,
        activation=activation_of(branch.source.samples) or "",
    )
    return Hidden(base.embeddings, (*base.layers, layer), None, shapes)


def activation_of(samples: Array) -> str | None:
    """Name the activation with these values on `GRID`."""
    erf = OPERATORS["Gelu"]([GRID], {})
    tanh = OPERATORS["Gelu"]([GRID], {"approximate": b"tanh"})
    known = {"gelu": erf, "gelu_tanh": tanh, "relu": np.maximum(GRID, 0.0)}
    for name, expected in known.items():
        if samples.shape == GRID.shape and np.abs(samples - expected).max() <= ACTIVATION_ERROR:
            return name
    return None


def _check_mask(scores: Scores, probes: Sequence[Probe]) -> None:
    """Prove on the probes that every real query sees all real keys and no padded one."""
    for index, probe in enumerate(probes):
        total = np.zeros(scores.shapes[index])
        try:
            with np.errstate(over="ignore"):
                for mask in scores.masks:
                    total = total + np.broadcast_to(mask[index], total.shape)
        except ValueError as error:
            raise MismatchError("an attention mask that fits (B, N, T, T)") from error
        real = probe.mask != 0
        for text in range(len(real)):
            rows = total[text][:, real[text]]  # (N, real queries, T)
            seen, hidden = rows[..., real[text]], rows[..., ~real[text]]
            if not (np.abs(seen) <= 1e-6).all() or not (hidden <= HIDDEN_SCORE).all():
                raise MismatchError(
                    "attention that sees all tokens with attention_mask 1 and no other; "
                    "on a small probe batch its mask does not"
                )


def _embeddings(lookups: Lookups, norm: LayerNorm, probes: Sequence[Probe]) -> Embeddings:
    """Tell the tables apart by the row numbers they were asked for."""
    tables: dict[str, tuple[Array, int | None]] = {}
    constant_rows: list[Array] = []
    word_scale = None
    for entry, rows in lookups.terms:
        role, number = _role(rows, probes)
        if role == "word" and (words := _words(entry)) is not None:
            table, word_scale = words
        else:
            table = entry.floats() if isinstance(entry, Dequantized) else entry
            float32(table, "embedding table")
        if role == "constant":
            if number is None or number >= len(table):
                raise MismatchError("a row that the embedding table has")
            constant_rows.append(table[number])
        elif role in tables:
            raise MismatchError(f"one table of {role} embeddings; it has several")
        else:
            tables[role] = (table, number)
    if "word" not in tables or not tables.keys() & {"position", "padded position"}:
        raise MismatchError("embeddings of input_ids and of positions")
    position, number = tables.get("position") or tables["padded position"]
    padding_id = None if "position" in tables else number
    if padding_id is None:
        position = position[number:]
    for row in constant_rows:
        position = position + row
    return Embeddings(
        word=np.array(tables["word"][0], order="C"),
        position=owned(position),
        token_type=owned(tables["token type"][0]) if "token type" in tables else None,
        norm=norm,
        padding_id=padding_id,
        projection=None,
        word_scale=word_scale,
    )


def _words(table: Array | Dequantized) -> tuple[Array, Array] | None:
    """Return int8 rows and a scale for each, if that is what a table is."""
    if not isinstance(table, Dequantized) or table.integers.dtype != np.int8:
        return None
    if table.zero_point.any() or table.scale.shape[1] != 1 or not (table.scale > 0).all():
        return None
    return table.integers, owned(np.broadcast_to(table.scale[:, 0], len(table.integers)))


def _role(rows: tuple[Array, ...], probes: Sequence[Probe]) -> tuple[str, int | None]:
    """Name what a table is indexed by, and the constant that belongs to it.

    That is for `position` the row of position 0, for `padded position` RoBERTa's padding id, for
    `constant` the row.
    """
    pairs = [(np.broadcast_to(r, p.ids.shape), p) for r, p in zip(rows, probes, strict=True)]
    if all(np.array_equal(row, probe.ids) for row, probe in pairs):
        return "word", None
    if all(np.array_equal(row, probe.types) for row, probe in pairs):
        return "token type", None
    first = int(pairs[0][0].flat[0])
    if first >= 0 and all((row == first).all() for row, _ in pairs):
        return "constant", first
    if first >= 0 and all((row == first + np.arange(row.shape[1])).all() for row, _ in pairs):
        return "position", first
    for padding_id in np.unique(np.concatenate([row.ravel() for row, _ in pairs])).tolist():
        if all((row == _padded_positions(p.ids, padding_id)).all() for row, p in pairs):
            return "padded position", padding_id
    raise MismatchError(
        "rows chosen by input_ids, by token_type_ids or by position, counted as BERT or RoBERTa do"
    )


def _padded_positions(ids: Array, padding_id: int) -> Array:
    real = ids != padding_id
    return np.asarray(np.cumsum(real, axis=1) * real + padding_id)


def sum_lookups(a: Lookups, b: Lookups) -> Lookups:
    try:
        shapes = tuple(np.broadcast_shapes(x, y) for x, y in zip(a.shapes, b.shapes, strict=True))
    except ValueError as error:
        raise MismatchError("embeddings of one size") from error
    if a.shapes[0][-1] != b.shapes[0][-1]:
        raise MismatchError("embeddings of one size")
    return Lookups((*a.terms, *b.terms), shapes)
