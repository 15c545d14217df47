"""`modules.json` and what it names: how sentence-transformers makes vectors or scores of a model.

The first module is the model; those behind it pool its hidden states, normalise and project.
Imports no torch.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.config import Pooling
from toolkit.errors import InputError

LIBRARY = "sentence_transformers.models"  # where versions of all ages have them
STOCK = f"{LIBRARY}.Transformer"
SPARSE = "toolkit.huggingface.sentence.SparseTransformer"
OF_LIBRARY = "config_sentence_transformers.json"  # prompts, similarity, what kind of model it is
OF_MODEL = "sentence_bert_config.json"  # the longest text, what the first module is used for


def write_modules(
    source: Path | None,
    target: Path,
    config: Mapping[str, Any],
    module: str,
    pooling: Pooling | None = None,
) -> None:
    """Make a folder one that `SentenceTransformer` or `CrossEncoder` loads, where that makes sense.

    Pooling and normalisation are those of `source` if it has any. Otherwise a model without a head
    gets what sentence-transformers itself would give it, the mean; a classifier becomes a
    cross-encoder; other heads get nothing.

    Args:
        source: The folder that the model comes from, if it is one.
        target: Where its files lie already.
        config: Its `config.json`.
        module: Class of the first module, `STOCK` or `SPARSE`.
        pooling: What replaces the pooling of `source` or the mean, if it was trained with another.

    Raises:
        InputError: `modules.json` of `source` is damaged, or names a folder outside.
    """
    architecture = (config.get("architectures") or [""])[0]
    if source is not None and (source / "modules.json").is_file():
        modules = _copy(source, target)
    elif architecture.endswith("Model"):
        modules = [{"name": "0", "path": "", "type": module}]
        modules.append({"name": "1", "path": "1_Pooling", "type": f"{LIBRARY}.Pooling"})
        size = config.get("hidden_size", config.get("dim"))  # DistilBERT's name for it
        _write(target / "1_Pooling" / "config.json", {"word_embedding_dimension": size})
        pooling = pooling or Pooling.mean
    elif architecture.endswith("ForSequenceClassification"):
        modules = [{"name": "0", "path": "", "type": module}]
        _write(target / OF_LIBRARY, {"model_type": "CrossEncoder"})
        _write(target / OF_MODEL, {"transformer_task": "sequence-classification"})
    else:
        return
    for number, entry in enumerate(modules):
        entry["idx"] = number
        if entry["type"].endswith(".Pooling") and pooling is not None:
            file = target / entry["path"] / "config.json"
            kept = {name: value for name, value in _read(file).items() if "mode" not in name}
            modes = {f"pooling_mode_{mode.value}_tokens": mode is pooling for mode in Pooling}
            modes["pooling_mode_cls_token"] = modes.pop("pooling_mode_cls_tokens")
            _write(file, kept | modes)
    modules[0]["type"] = module
    _write(target / "modules.json", modules)


def _copy(source: Path, target: Path) -> list[dict[str, Any]]:
    """Copy the modules behind the first, and all settings; return the list of modules."""
    modules = _read(source / "modules.json")
    if not modules or modules[0].get("path") or not modules[0]["type"].endswith("Transformer"):
        raise InputError(
            f"{source}/modules.json must begin with a Transformer in the folder itself: take it "
            "away to go on without"
        )
    for entry in modules[1:]:
        folder = source / entry["path"]
        if not folder.resolve().is_relative_to(source.resolve()):
            raise InputError(f"{source}/modules.json names {entry['path']}, outside of the folder")
        if folder.is_dir():  # a normalisation has nothing to keep there
            shutil.copytree(folder, target / entry["path"], dirs_exist_ok=True)
    for file in [*source.glob("sentence_*_config.json"), source / OF_LIBRARY]:
        if file.is_file():
            shutil.copyfile(file, target / file.name)
    assert isinstance(modules, list)
    return modules


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {file}: {error}") from None


def _write(file: Path, content: Any) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
