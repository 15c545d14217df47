"""The model card of an export: README.md, whose head in YAML the hub reads.

`export` writes it, `bench` of the same run adds what it measured. Imports no torch.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from toolkit.files import write_text
from toolkit.progress import say
from toolkit.record import metrics_of, speed_key

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

NAME = "README.md"
# What stands between these lines is ours; a card without them is its author's, and left alone.
START = "<!-- measured: `toolkit bench` of the same run writes anew what follows -->"
END = "<!-- end of what was measured -->"
INHERITED = ("license", "license_name", "license_link", "language")
# By the end of the architecture's name: the hub's word for what it does, our class, how it is used.
HEADS = {
    "ForQuestionAnswering": (
        "question-answering",
        "from toolkit import QuestionAnsweringPipeline\n\n"
        "answer = QuestionAnsweringPipeline(folder)\n"
        'print(answer(question="Who wrote it?", context="Ada wrote it."))',
    ),
    "ForSequenceClassification": ("text-classification", None),
    "ForTokenClassification": ("token-classification", None),
    "ForMaskedLM": ("fill-mask", None),
    "Model": (
        "feature-extraction",
        "from sentence_transformers import SentenceTransformer\n\n"
        "model = SentenceTransformer(folder, trust_remote_code=True)\n"
        'print(model.encode(["a text", "another one"]))',
    ),
}
METRIC_TYPES = {"mcc": "matthews_correlation", "spearman": "spearmanr"}  # the hub's names


def add_card(
    folder: Path,
    partial: Path,
    record: dict[str, Any],
    trained: dict[str, Any] | None,
    checkpoint: Path,
) -> None:
    """Write the card of an export, unless somebody has rewritten the one that is there.

    Args:
        folder: The export folder.
        partial: Where its new files are being written.
        record: Of the export.
        trained: The record beside the checkpoint, if there is one.
        checkpoint: Its folder.
    """
    if (folder / NAME).is_file() and not is_ours(folder / NAME):
        say(f"{folder / NAME} has been rewritten: it stays as it is")
        return
    run = None
    if trained is not None and trained["run"]["verb"] == "train":
        run, record = checkpoint.resolve().parent, record | {"config": trained["config"]}
    write_card(partial, record, run, checkpoint)


def write_card(folder: Path, record: Mapping[str, Any], trained: Path | None, origin: Path) -> None:
    """Write the card of a new export.

    Args:
        folder: The export, with its config.json.
        record: Its record; `config` is that of the training where there was one.
        trained: The training's run directory; None where there was none.
        origin: The checkpoint, whose own card says licence and language, and more if it was not
            trained here.
    """
    from huggingface_hub import ModelCard, ModelCardData

    facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    architecture = (facts.get("architectures") or [""])[0]
    head = next((head for head in HEADS if architecture.endswith(head)), None)
    config, model = record["config"], record["model"]
    told = _told_by(origin, config["model"]["path"] if trained else None)
    kept = {key: told[key] for key in INHERITED if told.get(key)}
    if trained is None:
        kept |= {key: told[key] for key in ("datasets", "base_model") if told.get(key)}
    else:
        kept |= {"base_model": _hub_id(config["model"]["path"])}
        kept |= {"datasets": (config["task"]["path"] or [None])[:1]}
    quantization = model.get("quantization", {})
    sparsity = model["sparsity"]
    ours = {
        "command": _command(trained),
        "layers": model["layers"],
        "parameters": model["parameters"],
        "sparsity": {name: round(sparsity[name], 4) for name in ("encoder", "whole_model")},
        "precision": quantization.get("precision", "fp32"),
    }
    data = ModelCardData(
        library_name="toolkit",
        pipeline_tag=HEADS[head][0] if head else None,
        tags=["onnx", "sparse", "cpu", facts.get("model_type"), quantization.get("precision")],
        model_name=model["name"],
        toolkit={key: value for key, value in ours.items() if value is not None},
        **{key: value for key, value in kept.items() if value not in (None, [None])},
    )
    data.tags = [tag for tag in data.tags or [] if tag]
    text = _body(record, architecture, head, ours, quantization)
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")
    write_text(folder / NAME, _measured(card, record["metrics"], [], {}))


def refresh_card(
    folder: Path,
    metrics: Mapping[str, Any],
    entries: Sequence[dict[str, Any]],
    environment: Mapping[str, Any],
) -> None:
    """Add to the card of an export what `bench` measured; a card that is none of ours stays.

    Args:
        folder: The export.
        metrics: As in a record.
        entries: Those of `speed` in a record, measured just now.
        environment: The machine they were measured on.
    """
    from huggingface_hub import ModelCard

    file = folder / NAME
    if not is_ours(file):
        if file.is_file():
            say(f"{file} has been rewritten: what was measured is not added")
        return
    write_text(file, _measured(ModelCard.load(file), metrics, entries, environment))


def is_ours(file: Path) -> bool:
    """Whether a card has the lines between which we write."""
    if not file.is_file():
        return False
    text = file.read_text(encoding="utf-8", errors="replace")
    return START in text and END in text


def _measured(
    card: "ModelCard",
    metrics: Mapping[str, Any],
    entries: Sequence[Mapping[str, Any]],
    environment: Mapping[str, Any],
) -> str:
    """Return a card with metrics and speed in its head and in its text."""
    from huggingface_hub import EvalResult

    data: Any = card.data  # of any keys
    scores = metrics_of(metrics)
    if scores:
        name = str(metrics["task"])
        data.eval_results = [
            EvalResult(
                task_type=data.pipeline_tag or "other",
                dataset_type=(data.datasets or [name])[0],
                dataset_name=name,
                metric_type=METRIC_TYPES.get(metric, metric),
                metric_value=round(value, 2),
                metric_name=f"{metric}, %",
            )
            for metric, value in scores.items()
        ]
    ours = dict(data.get("toolkit") or {})
    new = {speed_key(entry): _speed(entry, environment) for entry in entries if "onnx" not in entry}
    old = {speed_key(entry): entry for entry in ours.get("speed", [])}
    speed = list((old | new).values())
    if speed:
        ours["speed"] = speed
    data.toolkit = ours
    lines = [START, "", "## Measured", ""]
    for metric, value in scores.items():
        lines.append(f"- {metric}: {value:.2f} % on {metrics['num_examples']} examples")
    lines += _table(speed) if speed else ["- speed: not yet; `toolkit bench` measures it"]
    before, _, rest = card.text.partition(START)
    text = before + "\n".join([*lines, "", END]) + rest.partition(END)[2]
    return f"---\n{data.to_yaml()}\n---\n{text}"


def _speed(entry: Mapping[str, Any], environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a card says of one measurement, the machine's line included."""
    where = [environment["cpu"], f"{entry['num_threads']} threads", entry["isa"]]
    kept = ("engine", "precision", "batch_size", "seq_len", "lengths", "num_threads", "isa")
    return {name: entry.get(name) for name in kept} | {
        "items_per_s": round(entry["items_per_s"], 1),
        "latency_p50_ms": round(entry["latency_ms"]["p50"], 2),
        "machine": ", ".join(part for part in where if part),
    }


def _table(speed: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        "",
        "| engine | precision | texts × tokens | texts/s | p50, ms | machine |",
        "|---|---|---:|---:|---:|---|",
    ]
    for entry in speed:
        most = "≤ " if entry["lengths"] == "task" else ""
        rows.append(
            f"| {entry['engine']} | {entry['precision']} | {entry['batch_size']} × {most}"
            f"{entry['seq_len']} | {entry['items_per_s']:,} | {entry['latency_p50_ms']:,} | "
            f"{entry['machine']} |"
        )
    return rows


def _body(
    record: Mapping[str, Any],
    architecture: str,
    head: str | None,
    ours: Mapping[str, Any],
    quantization: Mapping[str, Any],
) -> str:
    name, zeros = record["model"]["name"], ours["sparsity"]["encoder"]
    facts = [
        f"- {ours['layers']} encoder layers, {ours['parameters']:,} parameters",
        f"- {zeros:.1%} of the encoder's weights are zero, {ours['sparsity']['whole_model']:.1%} "
        "of all parameters",
        f"- weights in INT8 ({quantization['method']}), QDQ" if quantization else "- float32",
    ]
    if record["model"].get("random_weights"):
        facts.append("- the weights are random: only its speed means something")
    how = [] if ours["command"] is None else ["", "```", ours["command"], "```"]
    return "\n".join(
        [
            f"# {name}",
            "",
            f"An ONNX export of a {architecture}, which any ONNX runtime runs. The sparse engine "
            "of `toolkit` skips its zeros on a CPU:",
            "",
            "```python",
            'folder = "."  # where this file lies, or the name of its repository',
            _usage(head),
            "```",
            "",
            "## The model",
            "",
            *facts,
            *how,
            "",
            START,
            END,
            "",
        ]
    )


def _usage(head: str | None) -> str:
    if head is None:
        return "from toolkit.engine import Engine\n\nengine = Engine.load(folder)"
    task, example = HEADS[head]
    if example is not None:
        return example
    name = f"SparseModel{head}"
    return (
        f"from toolkit import {name}\nfrom transformers import AutoTokenizer, pipeline\n\n"
        f"model = {name}.from_pretrained(folder)\n"
        f'run = pipeline("{task}", model=model, tokenizer=AutoTokenizer.from_pretrained(folder))'
    )


def _told_by(origin: Path, model_path: str | None) -> dict[str, Any]:
    """Return the head of the nearest card: the checkpoint's, or that of what it began as."""
    from huggingface_hub import ModelCard

    for folder in (origin, *([] if model_path is None else [Path(model_path)])):
        file = folder / NAME
        if file.is_file():
            try:
                found: dict[str, Any] = ModelCard.load(
                    file, ignore_metadata_errors=True
                ).data.to_dict()
            except (ValueError, OSError, yaml.YAMLError):  # no card of the hub's
                continue
            return found
    return {}


def _hub_id(path: str | None) -> str | None:
    """Return what is a hub id and no folder of this machine."""
    is_id = path is not None and not Path(path).exists() and path.count("/") <= 1
    return path if is_id and path is not None and path[0] not in "./~" else None


def _command(trained: Path | None) -> str | None:
    """Return the command of a training, without the folders of this machine."""
    file = None if trained is None else trained / ".hydra" / "overrides.yaml"
    if file is None or not file.is_file():
        return None
    words = []
    for override in yaml.safe_load(file.read_text(encoding="utf-8")) or []:
        key, _, value = str(override).partition("=")
        if key != "output_dir":
            words.append(
                f"{key}=.../{Path(value).name}" if value[:1] in "/~" and value else override
            )
    return " ".join(["toolkit train", *map(shlex.quote, words)])
