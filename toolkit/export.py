"""`toolkit export`: checkpoint → ONNX, loaded back and compared with torch before it is published.

Letters: B texts, T tokens.
"""

import json
import logging
import os
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from toolkit import tasks
from toolkit.artifact.agreement import Batch, Run, largest_difference
from toolkit.compress.depth import drop_layers, encoder_layers, kept_layers
from toolkit.compress.model import ARCHITECTURES, check_folder, load_model, load_tokenizer
from toolkit.compress.sparsity import measure_sparsity, prunable_weights, prune_once
from toolkit.config import ExportRoot, ModelConfig, TaskKind, Weights, from_plain
from toolkit.engine import Engine
from toolkit.engine.reader.graph import read_graph
from toolkit.errors import GateError, InputError, UsageError
from toolkit.measure.worker import answer_requests
from toolkit.record import new_record, read_record, root_id, write_record

OPSET = 18  # the oldest that torch's exporter writes correctly, so that most runtimes read it
IR_VERSION = 8  # the file format that came with opset 18, for the same reason
PROTOBUF_LIMIT = 2**31 - 2**24  # bytes of weights in one file; protobuf ends at 2 GiB
PARITY_LENGTHS = (1, 2, 3, 17)  # tokens, besides real texts and the longest the model allows
HALF = 0.5  # a layer of this sparsity should not run dense, and is worth a warning if it does
LINEARS = ("query", "key", "value", "attention_output", "intermediate", "output")
COPIED_FILES = (
    *("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model"),
)


def export(config: ExportRoot) -> Path:
    """Export a checkpoint, or a what-if model with untrained weights if none is given.

    Args:
        config: `checkpoint` names a Hugging Face folder. Null makes one inside the export folder
            from `model`, `depth` and `sparsity`.

    Returns:
        The export folder: `output_dir`, else `export` beside the checkpoint.

    Raises:
        InputError: The checkpoint is missing, damaged or of another architecture, or the disk is
            full.
        GateError: An engine's outputs differ from torch's by more than `export.atol`, or zeros
            were lost. No file is left then.
    """
    if config.checkpoint is None and config.output_dir is None:
        raise UsageError("export needs checkpoint=DIR, or output_dir=DIR for untrained weights")
    folder = Path(config.output_dir or Path(str(config.checkpoint)).resolve().parent / "export")
    record = new_record("export", config)
    with _partial(folder) as partial, _quiet():
        if config.checkpoint is None:
            checkpoint = make_checkpoint(config, partial / "checkpoint")
            relative = checkpoint.name
        else:
            checkpoint = Path(config.checkpoint)
            relative = os.path.relpath(checkpoint.resolve(), folder.resolve())
        model = load_checkpoint(checkpoint)
        onnx = partial / "model.onnx"
        inputs = write_onnx(model, onnx)
        batches, texts = parity_batches(config, model, checkpoint, inputs)
        facts = {
            "checkpoint": relative,
            "opset": OPSET,
            "parity": check_parity(config, model, onnx, batches) | {"texts": texts},
            "zeros": check_zeros(model, onnx),
            "versions": {
                name: version(name) for name in ("toolkit", "torch", "transformers", "onnx")
            },
        }
        for name in COPIED_FILES:
            if (checkpoint / name).is_file():
                shutil.copyfile(checkpoint / name, partial / name)
        write_record(partial / "record.json", _fill_record(record, config, model, onnx))
        (partial / "export.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        _publish(partial, folder)
    _print_summary(folder, facts)
    return folder


def make_checkpoint(config: ExportRoot, folder: Path) -> Path:
    """Write a what-if checkpoint: new weights, layers dropped, pruned at once, nothing trained.

    The head is question answering's, unless another task than the default was chosen. A tokenizer
    is written where one is at hand without the network.
    """
    torch.manual_seed(config.seed)
    task = config.task
    if task.name == "demo":
        task = replace(task, kind=TaskKind.question_answering)
    tokenizer = _find_tokenizer(config.model)
    # The stand-in lends nothing but sizes, which the model's own configuration overrides.
    stand_in = load_tokenizer(replace(config.model, path=None))
    model = load_model(replace(config.model, weights=Weights.random), task, tokenizer or stand_in)
    model = drop_layers(model, kept_layers(len(encoder_layers(model)), config.depth))
    prune_once(model, config.sparsity).save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def load_checkpoint(folder: Path) -> PreTrainedModel:
    """Load a checkpoint with the class that its configuration names.

    Raises:
        InputError: It is missing, damaged, incomplete, or of an architecture the engine does not
            run.
    """
    check_folder(f"{folder.parent}/{folder.name}")
    try:
        config = AutoConfig.from_pretrained(folder)
    except Exception as error:  # OSError, ValueError (unknown model_type), KeyError
        raise _damaged(folder, "config.json", error) from error
    name = (config.architectures or ["no architecture"])[0]
    if config.model_type not in ARCHITECTURES or getattr(config, "is_decoder", False):
        raise InputError(
            f"{folder} holds a {name} ({config.model_type}), which the sparse engine does not run; "
            f"expected an encoder of the kinds {', '.join(ARCHITECTURES)}"
        )
    model_class = getattr(transformers, name, None)
    if not isinstance(model_class, type) or not issubclass(model_class, PreTrainedModel):
        raise InputError(
            f"{folder}/config.json names the architecture {name!r}, which transformers "
            f"{transformers.__version__} does not have"
        )
    config.output_hidden_states = config.output_attentions = False
    try:
        loaded: Any = model_class.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            attn_implementation="eager",  # the plainest graph
            output_loading_info=True,
        )
    except Exception as error:  # OSError, SafetensorError, RuntimeError (shapes)
        raise _damaged(folder, "weights", error) from error
    model, loading = loaded
    if loading["missing_keys"]:
        raise InputError(
            f"{folder} lacks {len(loading['missing_keys'])} weights of its {name}, such as "
            f"{min(loading['missing_keys'])}: the checkpoint is incomplete or of another kind"
        )
    assert isinstance(model, PreTrainedModel)
    model.train(False)
    return model


def max_tokens(config: PreTrainedConfig) -> int:
    """Return the longest text that a model has positions for."""
    if config.model_type in ("camembert", "roberta", "xlm-roberta"):
        return int(config.max_position_embeddings - config.pad_token_id - 1)
    return int(config.max_position_embeddings)


def write_onnx(model: PreTrainedModel, path: Path) -> list[str]:
    """Write an ONNX file with dynamic batch and length, free of local paths and stack traces.

    Weights go into a second file `<name>.data` where protobuf's limit demands it.

    Returns:
        The names of its inputs.
    """
    inputs = ["input_ids", "attention_mask"]
    if getattr(model.config, "type_vocab_size", 1) > 1:
        inputs.append("token_type_ids")
    # Two different sizes above 1, which the exporter would take for constants; a padded text, so
    # that the mask is not dropped for being all ones.
    example = {name: torch.ones(2, 7, dtype=torch.long) for name in inputs}
    example["attention_mask"][1, 5:] = 0
    with torch.inference_mode():
        outputs = list(model(**example).keys())
    dynamic = {
        0: torch.export.Dim("batch"),
        1: torch.export.Dim("length", max=max_tokens(model.config)),
    }
    program = torch.onnx.export(
        model,
        (),
        kwargs=example,
        dynamo=True,
        opset_version=OPSET,
        input_names=inputs,
        output_names=outputs,
        dynamic_shapes=dict.fromkeys(inputs, dynamic),
        verbose=False,
    )
    assert program is not None
    _strip_metadata(program.model)
    program.model.ir_version = IR_VERSION
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    program.save(path, external_data=size > PROTOBUF_LIMIT)
    return inputs


def parity_batches(
    config: ExportRoot, model: PreTrainedModel, checkpoint: Path, inputs: Sequence[str]
) -> tuple[list[Batch], str]:
    """Make what the engines are compared on: the task's texts alone and padded, and many lengths.

    Returns:
        Batches of the graph's inputs, (B, T) int64 each; and where the texts came from.
    """
    longest, pad_id = max_tokens(model.config), model.config.pad_token_id or 0
    rng = np.random.default_rng(config.seed)
    count = config.export.num_parity_examples
    task = replace(
        config.task,
        max_length=min(config.task.max_length, longest),
        max_eval_samples=min(config.task.max_eval_samples or count, count),
    )
    try:
        if not (checkpoint / "tokenizer.json").is_file():
            raise InputError("the checkpoint has no tokenizer")
        tokenizer = tasks.load_tokenizer(checkpoint)
        examples = tasks.load_examples(task, "eval", config.seed)
        features = tasks.encode(examples, tokenizer, task, training=False)[:count]
        if max(max(f["input_ids"]) for f in features) >= model.config.vocab_size:
            raise InputError("its tokenizer has more tokens than the model")
        texts = f"{len(features)} texts of task={task.name}"
    except InputError as error:
        features = [
            _random_feature(rng, model, length)
            for length in rng.integers(2, min(longest, 64) + 1, count)
        ]
        texts = f"random ids, because there are no real texts: {error}"
    groups = [features, features[:1]]
    groups += [
        [_random_feature(rng, model, length)]
        for length in {*PARITY_LENGTHS, longest} - {0}
        if length <= longest
    ]
    batches = [tasks.collate(group, pad_id) for group in groups]
    return [{name: batch[name] for name in inputs} for batch in batches], texts


def check_parity(
    config: ExportRoot, model: PreTrainedModel, onnx: Path, batches: Sequence[Batch]
) -> dict[str, Any]:
    """Compare every engine with torch.

    Returns:
        Per engine the largest absolute difference of any output where there is no padding (null
        where the engine is not installed), the tolerance, the batches' shapes, and the kernel and
        zeros of each of the sparse engine's layers.

    Raises:
        GateError: A difference exceeds `export.atol`.
    """
    expected = [_run_torch(model, batch) for batch in batches]
    try:
        asked = config.engine
        # torch's threads are still about: whoever runs the model shall time it
        engine = Engine.load(onnx, asked.num_threads, asked.isa, asked.kernel, keep_timings=False)
    except ValueError as error:  # no such ISA or kernel here
        raise UsageError(str(error)) from error
    runs: dict[str, Run | None] = {"sparse": engine.run, "onnxruntime": _load_onnxruntime(onnx)}
    differences: dict[str, float | None] = {}
    for name, run in runs.items():
        if run is None:
            differences[name] = None
            continue
        differences[name] = worst = max(
            largest_difference(run(batch), outputs, batch["attention_mask"])
            for batch, outputs in zip(batches, expected, strict=True)
        )
        if not worst <= config.export.atol:
            raise GateError(
                f"the outputs of engine {name} differ from torch's by {worst:.2g}, more than "
                f"export.atol={config.export.atol:g}: the export was not kept"
            )
    return {
        "max_difference": differences,
        "atol": config.export.atol,
        "batches": [list(batch["input_ids"].shape) for batch in batches],
        "kernels": {name: _kernel(weight) for name, weight in engine.weights()},
    }


def check_zeros(model: PreTrainedModel, onnx: Path) -> dict[str, Any]:
    """Count the zeros of every prunable weight in the checkpoint and in the ONNX file.

    Raises:
        GateError: They differ.
    """
    written = [getattr(layer, name).weight for layer in read_graph(onnx).layers for name in LINEARS]
    tensors = []
    for (name, weight), array in zip(prunable_weights(model).items(), written, strict=True):
        counts = [weight.numel() - int(torch.count_nonzero(weight))]
        counts.append(array.size - int(np.count_nonzero(array)))
        if counts[0] != counts[1] or array.shape != tuple(weight.shape):
            raise GateError(
                f"{name} of shape {tuple(weight.shape)} has {counts[0]} zeros in the checkpoint, "
                f"but {counts[1]} of shape {array.shape} in ONNX: the export was not kept"
            )
        tensors.append({"name": name, "elements": array.size, "zeros": counts[1]})
    zeros, elements = (sum(t[key] for t in tensors) for key in ("zeros", "elements"))
    return {"encoder": zeros / elements, "equal_to_checkpoint": True, "tensors": tensors}


def _damaged(folder: Path, what: str, error: Exception) -> InputError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return InputError(f"cannot read the {what} in {folder} ({reason}): the checkpoint is damaged")


def _find_tokenizer(model: ModelConfig) -> Any:
    """Load a what-if model's tokenizer if that takes no network."""
    if model.path is None:
        return load_tokenizer(model)
    try:
        return AutoTokenizer.from_pretrained(model.path, local_files_only=True)
    except Exception:  # not in the cache, in as many ways as the hub's client has errors
        return None


def _strip_metadata(model: Any) -> None:
    """Drop what the exporter notes of this machine: source paths, stack traces, module scopes."""
    model.metadata_props.clear()
    graph = model.graph
    graph.metadata_props.clear()
    for value in [*graph.inputs, *graph.outputs, *graph.initializers.values()]:
        value.metadata_props.clear()
    for node in graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()


def _random_feature(rng: np.random.Generator, model: PreTrainedModel, length: int) -> Any:
    """One text of random ids, none of them padding."""
    ids = rng.integers(0, model.config.vocab_size, length)
    pad_id = model.config.pad_token_id or 0
    ids[ids == pad_id] = pad_id + 1
    types = rng.integers(0, getattr(model.config, "type_vocab_size", 1) or 1, length)
    return {"input_ids": ids, "attention_mask": np.ones(length), "token_type_ids": types}


def _kernel(weight: Any) -> dict[str, Any]:
    return {"kernel": weight.form, "sparsity": 1.0 - weight.density}


def _run_torch(model: PreTrainedModel, batch: Batch) -> Batch:
    with torch.inference_mode():
        outputs = model(**{name: torch.from_numpy(array) for name, array in batch.items()})
    return {name: tensor.numpy() for name, tensor in outputs.items()}


def _load_onnxruntime(onnx: Path) -> Run | None:
    try:
        import onnxruntime  # type: ignore[import-untyped]  # ships no types
    except ModuleNotFoundError:
        return None
    session = onnxruntime.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda batch: dict(zip(names, session.run(names, batch), strict=True))


def _fill_record(
    record: dict[str, Any], config: ExportRoot, model: PreTrainedModel, onnx: Path
) -> dict[str, Any]:
    """Carry the training's record along, and add what the export knows."""
    name = config.model.name
    if config.checkpoint is not None:
        checkpoint = Path(config.checkpoint)
        trained = checkpoint.resolve().parent / "record.json"
        name = checkpoint.resolve().name
        if trained.is_file():
            earlier = read_record(trained)
            record["run"]["parent"] = root_id(earlier)
            record["metrics"] = earlier["metrics"]
            name = earlier["model"].get("name", name)
        size = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
        record["size_bytes"]["checkpoint"] = size
    record["model"] = {
        "name": name,
        "layers": len(encoder_layers(model)),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "random_weights": config.checkpoint is None,
        "sparsity": measure_sparsity(model),
    }
    record["size_bytes"]["onnx"] = sum(f.stat().st_size for f in onnx.parent.glob("model.onnx*"))
    return record


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the libraries tell of their own doings: passes, deprecations, progress bars."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir", "onnxscript")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"torch|onnxscript|onnx_ir|copyreg")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        transformers.utils.logging.enable_progress_bar()  # type: ignore[no-untyped-call]


@contextmanager
def _partial(folder: Path) -> Iterator[Path]:
    """Give a temporary folder inside of `folder`; whatever is left in it goes at the end."""
    temporary = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder, prefix=".partial-"))
        yield temporary
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _publish(partial: Path, folder: Path) -> None:
    """Move everything into place; a reader who finds `model.onnx` finds all that belongs to it."""
    (folder / "model.onnx").unlink(missing_ok=True)
    (folder / "model.onnx.data").unlink(missing_ok=True)
    for path in sorted(partial.iterdir(), key=lambda path: path.name == "model.onnx"):
        if (folder / path.name).is_dir():
            shutil.rmtree(folder / path.name)
        path.replace(folder / path.name)


def _print_summary(folder: Path, facts: dict[str, Any]) -> None:
    parity, zeros = facts["parity"], facts["zeros"]
    size = sum(file.stat().st_size for file in folder.glob("model.onnx*"))
    print(f"exported {folder / 'model.onnx'}: {size / 1e6:.1f} MB, opset {facts['opset']}")
    for engine, difference in parity["max_difference"].items():
        told = "not installed, not compared" if difference is None else f"{difference:.2g}"
        print(f"largest difference to torch, {engine}: {told}")
    print(f"compared on {parity['texts']}")
    print(f"zeros in the encoder's weights: {zeros['encoder']:.2%}, as many as in the checkpoint")
    for name, layer in parity["kernels"].items():
        if layer["kernel"] == "dense" and layer["sparsity"] >= HALF:
            print(f"warning: {name} runs dense in spite of {layer['sparsity']:.0%} zeros")
    counts = Counter(layer["kernel"] for layer in parity["kernels"].values())
    print("kernels:", ", ".join(f"{count} layers {name}" for name, count in counts.items()))


def _export_as_asked(_: dict[str, Any], *, config: dict[str, Any]) -> dict[str, Any]:
    export(from_plain(ExportRoot, config))
    return {}


if __name__ == "__main__":  # `bench` makes what-if models in a process of its own, free of torch
    answer_requests({"export": _export_as_asked})
