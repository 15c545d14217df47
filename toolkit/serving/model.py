"""The served model: what it is for, from text to model inputs, and a batch of them through it.

B texts of a batch, T positions, H hidden, C classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from toolkit.artifact.exported import Exported, read_exported, read_json
from toolkit.config import Pooling, ServeRoot
from toolkit.engine import Engine
from toolkit.errors import InputError, UsageError
from toolkit.tasks.features import Feature, collate, load_tokenizer, unset
from toolkit.tasks.question_answering import window_cutter

Outputs = dict[str, NDArray[Any]]
Text = str | tuple[str, str]
# Tokens of a question with its window of the context, and of overlap, as in HF's pipeline.
WINDOW, STRIDE = 384, 128
PROBES = (3, 5)  # lengths of two texts by which an output of one row per token shows itself


class Kind(Enum):
    """What a model answers. `reranker` is a classifier of pairs with one class."""

    embedding = "embedding"
    classifier = "classifier"
    reranker = "reranker"
    question_answering = "question_answering"
    token_classifier = "token_classifier"
    masked_words = "masked_words"


@dataclass(frozen=True)
class Model:
    """A model, ready to answer.

    Attributes:
        name: In answers and in the paths of /v2.
        kind: What it answers.
        precision: What it computes in, such as float32.
        inputs: Names of its inputs, each (B, T) int64.
        outputs: Names of its outputs, and the shape of one text's; None stands for its tokens.
        run: A batch (inputs by name) through it: outputs by name, each of B rows.
        tokenizers: By the side on which a text that is too long is cut: `right`, `left`; None
            cuts none.
        cut_windows: Of question answering: from pairs of question and context to windows of each.
        labels: Names of the classes; empty for kinds without.
        is_multi_label: Whether a text may be of several classes at once.
        pooling: How an embedding is made of hidden states.
        prompts: Texts put in front of what is embedded, by name.
        max_tokens: Longest text, special tokens included.
        pad_id: Id of the padding token.
    """

    name: str
    kind: Kind
    precision: str
    inputs: list[str]
    outputs: dict[str, tuple[int | None, ...]]
    run: Callable[[dict[str, NDArray[Any]]], Outputs]
    tokenizers: dict[str | None, Tokenizer]
    cut_windows: Callable[[Sequence[tuple[str, str]]], list[list[Encoding]]] | None
    labels: list[str]
    is_multi_label: bool
    pooling: Pooling
    prompts: dict[str, str]
    max_tokens: int
    pad_id: int


def load_model(config: ServeRoot) -> Model:
    """Load an export folder into the engine, and find out what the model is for.

    Raises:
        InputError: A file is missing, damaged, or not a model that the engine knows.
        UsageError: Another engine is asked for, or a precision or instruction set not there.
    """
    options = config.engine
    if options.name != "sparse":
        raise UsageError(f"serve runs the sparse engine: engine=sparse; got {options.name}")
    exported = read_exported(Path(config.onnx))
    try:
        engine = Engine.load(
            exported.onnx, options.num_threads, options.isa, options.kernel, options.precision
        )
    except ValueError as error:
        raise UsageError(f"engine: {error}") from error
    narrow = engine.narrow
    names = {"int8": "int8", "bf16": "bfloat16", "fp16": "half"}
    precision = next((names[name] for name in names if name in narrow), "float32")
    return describe(config, exported, engine.inputs, engine.run, precision)


def describe(
    config: ServeRoot,
    exported: Exported,
    inputs: list[str],
    run: Callable[[dict[str, NDArray[Any]]], Outputs],
    precision: str,
) -> Model:
    """Find out what a model is for: by what comes out for two short texts, and the files beside it.

    Args:
        config: As of `toolkit serve`.
        exported: The files.
        inputs: Names of the inputs.
        run: As of `Model`.
        precision: As of `Model`.

    Raises:
        InputError: A file is missing or damaged, or the outputs are none of a known kind.
    """
    folder = exported.onnx.parent
    facts = read_json(folder / "config.json")
    tokenizer = load_tokenizer(folder)
    cut_at = read_json(folder / "sentence_bert_config.json").get("max_seq_length")
    max_tokens = min(exported.max_tokens, cut_at or exported.max_tokens)
    shapes = _shapes_of(inputs, run, exported.pad_id)
    kind = _kind_of(shapes, exported)
    is_answering = kind is Kind.question_answering
    labels = []
    if kind in (Kind.classifier, Kind.reranker, Kind.token_classifier):
        names = facts.get("id2label") or {}
        count = shapes["logits"][-1] or 0
        labels = [str(names.get(str(i), f"LABEL_{i}")) for i in range(count)]
    return Model(
        name=config.serve.model_name or _name_of(exported),
        kind=kind,
        precision=precision,
        inputs=inputs,
        outputs=shapes,
        run=run,
        tokenizers=_tokenizers(tokenizer, max_tokens),
        cut_windows=_window_cutter(tokenizer, max_tokens) if is_answering else None,
        labels=labels,
        is_multi_label=facts.get("problem_type") == "multi_label_classification",
        pooling=config.serve.pooling or _pooling_of(exported),
        prompts=read_json(folder / "config_sentence_transformers.json").get("prompts") or {},
        max_tokens=max_tokens,
        pad_id=exported.pad_id,
    )


def encode(
    model: Model, texts: Sequence[Text], side: str | None, special_tokens: bool = True
) -> list[Encoding]:
    """Tokenize texts or pairs, those that are too long cut at `side` (right, left; None: whole)."""
    return model.tokenizers[side].encode_batch(list(texts), add_special_tokens=special_tokens)


def run_batch(model: Model, features: Sequence[Feature]) -> list[Outputs]:
    """Run texts of any lengths at once.

    Returns:
        Per text its outputs, those of one row per token as long as the text.

    Raises:
        ValueError: A token, type or mask is out of its range.
    """
    batch = collate(features, model.pad_id)
    outputs = model.run({name: batch[name] for name in model.inputs})
    rows = []
    for row, feature in enumerate(features):
        tokens = len(feature["input_ids"])
        rows.append(
            {
                name: outputs[name][row, :tokens] if None in shape else outputs[name][row]
                for name, shape in model.outputs.items()
            }
        )
    return rows


def _shapes_of(
    inputs: list[str], run: Callable[[dict[str, NDArray[Any]]], Outputs], pad_id: int
) -> dict[str, tuple[int | None, ...]]:
    """Run two texts of different lengths, and see which axes follow them."""
    found = []
    for length in PROBES:
        # an id that is not padding's, from which RoBERTa's positions are counted
        ids = np.full((1, length), 0 if pad_id else 1, np.int64)
        fills = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        found.append(run({name: fills.get(name, np.zeros_like(ids)) for name in inputs}))
    return {
        name: tuple(
            None if first != second else first
            for first, second in zip(array.shape[1:], found[1][name].shape[1:], strict=True)
        )
        for name, array in found[0].items()
    }


def _kind_of(shapes: dict[str, tuple[int | None, ...]], exported: Exported) -> Kind:
    """Name what a model with such outputs answers.

    Raises:
        InputError: That is nothing known.
    """
    if {"start_logits", "end_logits"} <= set(shapes):
        return Kind.question_answering
    if "last_hidden_state" in shapes:
        return Kind.embedding
    logits = shapes.get("logits")
    if logits is not None and len(logits) == 1:
        return Kind.reranker if logits == (1,) else Kind.classifier
    if logits is not None and len(logits) == 2:
        is_words = logits[-1] == exported.vocab_size
        return Kind.masked_words if is_words else Kind.token_classifier
    raise InputError(
        f"{exported.onnx} has the outputs {', '.join(shapes)}: expected last_hidden_state, logits, "
        "or start_logits and end_logits"
    )


def _pooling_of(exported: Exported) -> Pooling:
    """Read how embeddings are made: sentence-transformers' file, else the record; else the mean."""
    modes = read_json(exported.onnx.parent / "1_Pooling" / "config.json")
    if modes:  # the second key is that of older versions
        is_cls = modes.get("pooling_mode") == "cls" or modes.get("pooling_mode_cls_token")
        return Pooling.cls if is_cls else Pooling.mean
    task = ((exported.record or {}).get("config") or {}).get("task") or {}
    return Pooling(task.get("pooling") or Pooling.mean)


def _name_of(exported: Exported) -> str:
    name = ((exported.record or {}).get("model") or {}).get("name")
    return str(name or exported.onnx.resolve().parent.name)


def _window_cutter(
    tokenizer: Tokenizer, max_tokens: int
) -> Callable[[Sequence[tuple[str, str]]], list[list[Encoding]]]:
    length = min(WINDOW, max_tokens)
    return window_cutter(tokenizer, length, min(STRIDE, length // 4))


def _tokenizers(tokenizer: Tokenizer, max_tokens: int) -> dict[str | None, Tokenizer]:
    """Copy a tokenizer per side: cutting is a setting of it, and threads share it."""
    found: dict[str | None, Tokenizer] = {}
    for side in (None, "right", "left"):
        found[side] = unset(tokenizer)
        found[side].no_truncation()
        if side is not None:
            found[side].enable_truncation(max_tokens, direction=side)
    return found
