"""Models and tokenizers: loaded from the hub or a folder, or made anew. Writes plain HF folders."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import SAFE_WEIGHTS_NAME, WEIGHTS_NAME
from transformers.utils.hub import cached_file

from toolkit.compress.layouts import architecture_of, is_odd, plain_config, plain_weights
from toolkit.compress.quantization.layers import write_grids
from toolkit.compress.sentence_modules import STOCK, write_modules
from toolkit.compress.structured.widths import resize
from toolkit.config import ModelConfig, Pooling, TaskConfig, Weights
from toolkit.errors import InputError, UsageError
from toolkit.families import FAMILIES, inputs_of, longest_text
from toolkit.files import new_folder
from toolkit.progress import say, warn
from toolkit.tasks import kind_of, problem_type
from toolkit.tasks.demo import make_tokenizer
from toolkit.tasks.features import Feature
from toolkit.tasks.labels import either, names_in


def load_tokenizer(model: ModelConfig) -> PreTrainedTokenizerFast:
    """Load the tokenizer that belongs to a model; the demo's is made here.

    Raises:
        InputError: There is none at `model.path`, or it is damaged, or it has no fast version.
    """
    if model.path is None:
        return PreTrainedTokenizerFast(
            tokenizer_object=make_tokenizer(),
            model_max_length=model.config.get("max_position_embeddings"),
            model_input_names=["input_ids", "token_type_ids", "attention_mask"],
            pad_token="[PAD]",
            unk_token="[UNK]",
            cls_token="[CLS]",
            sep_token="[SEP]",
            mask_token="[MASK]",
        )
    return tokenizer_of(model.path)


def tokenizer_of(path: str) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a checkpoint: `tokenizer.json`, or made of `vocab.txt` and the like.

    Args:
        path: A folder or hub id.

    Raises:
        InputError: As of `load_tokenizer`.
    """
    check_folder(path)
    try:
        config = _config_of(path)  # what a tokenizer is like follows from `model_type`
        tokenizer = AutoTokenizer.from_pretrained(path, config=config)
    except InputError as error:
        raise InputError(f"cannot use {path}: {error}") from None
    except Exception as error:  # OSError, ValueError, bare Exception of the Rust part, HTTP errors
        raise InputError(_cannot_load("tokenizer", path, error)) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise InputError(
            f"the tokenizer of {path} has no fast version (tokenizer.json), which this "
            "toolkit needs; convert it with transformers first"
        )
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers' own, for want of a file
        raise InputError(
            f"{path} has no tokenizer (tokenizer.json or vocab.txt): copy that of the model it was "
            "made from into the folder"
        )
    return tokenizer


def folder_of(path: str) -> Path:
    """Return where the files of a checkpoint lie: a folder, or in the cache what a hub id named.

    Args:
        path: Of a checkpoint that has been loaded.
    """
    config = cached_file(path, "config.json")
    assert config is not None
    return Path(config).parent


def load_model(
    model: ModelConfig,
    task: TaskConfig,
    tokenizer: PreTrainedTokenizerFast,
    is_fine_tuned: bool = False,
) -> PreTrainedModel:
    """Load or make a float32 model with the task's head.

    New weights (all of them, or only the head's) come from torch's global generator.

    Args:
        model: Where the weights come from.
        task: Decides the head.
        tokenizer: Its length is the vocabulary size of a model made from `model.config`.
        is_fine_tuned: Whether the task's head must be there already: nothing is going to train it.

    Raises:
        InputError: The folder or hub id cannot be read, is damaged, or holds another architecture.
        UsageError: `model.config` is no configuration, or `task.max_length` is too long.
    """
    config = _load_config(model, task, tokenizer)
    longest = longest_text_of(config)
    if task.max_length > longest:
        raise UsageError(
            f"task.max_length must be at most {longest}, the positions of the model; "
            f"got {task.max_length}"
        )
    auto_model: Any = getattr(transformers, kind_of(task).AUTO_CLASS)
    if model.weights is Weights.pretrained:
        return _from_pretrained(auto_model, str(model.path), config, is_fine_tuned)
    if is_fine_tuned:
        raise UsageError(
            f"trainer.num_train_epochs=0 trains nothing, but model={model.name} has new weights: "
            "name a fine-tuned checkpoint with model=local model.path=DIR"
        )
    result = auto_model.from_config(config)
    assert isinstance(result, PreTrainedModel)
    widths = getattr(config, "layer_widths", None)
    try:
        return result if widths is None else resize(result, widths)
    except ValueError as error:
        raise UsageError(f"model.config: {error}") from None


def load_checkpoint(folder: str | Path, **more: Any) -> PreTrainedModel:
    """Load a float32 model, its head included, with the class that its configuration names.

    Its layers get the sizes that `layer_widths` in config.json says, where structured pruning has
    written them; stock transformers refuses such a folder for the shapes of its weights.

    Args:
        folder: A Path names a folder; a str may be a hub id, too.
        more: Arguments of `from_pretrained`.

    Raises:
        InputError: It is missing, damaged, incomplete, or of another architecture.
    """
    path = f"{folder.parent}/{folder.name}" if isinstance(folder, Path) else folder
    check_folder(path)
    config = _read_config(path)
    name = config.architectures[0] if config.architectures else _find_architecture(path, config)
    model_class = getattr(transformers, name, None)
    if not isinstance(model_class, type) or not issubclass(model_class, PreTrainedModel):
        raise InputError(
            f"{path}/config.json names the architecture {name!r}, which transformers "
            f"{transformers.__version__} does not have: name the class there whose head it has, "
            f"such as {_class_prefix(config)}ForSequenceClassification"
        )
    config.architectures = [name]
    config.output_hidden_states = config.output_attentions = False
    model = _from_pretrained(model_class, path, config, is_fine_tuned=True, **more)
    model.train(False)
    return model


def check_task(model: PreTrainedModel, path: str, task: TaskConfig) -> None:
    """Refuse a checkpoint that was made for another task.

    Raises:
        InputError: Its head or the number of its labels is another.
    """
    head = kind_of(task).AUTO_CLASS.removeprefix("AutoModel")
    if not type(model).__name__.endswith(head or "Model"):
        raise InputError(
            f"{path} holds a {type(model).__name__}, but task={task.name} needs a model "
            f"{head or 'without a head'}: name a checkpoint that was fine-tuned on this task"
        )
    if model.config.num_labels != task.num_labels:
        raise InputError(
            f"{path} was made for {model.config.num_labels} labels, but task={task.name} has "
            f"{task.num_labels}: name a checkpoint that was fine-tuned on this task"
        )
    theirs, names = names_in(model.config.id2label or {}), task.label_names
    if theirs is not None and names is not None and theirs != list(names):
        said = "in another order" if sorted(theirs) == sorted(names) else "which are others"
        raise InputError(
            f"{path} was made for the labels {either(theirs)}, but task={task.name} has "
            f"{either(names)}, {said}: name a checkpoint that was fine-tuned on this task, or state"
            " the order with task.label_names=[…]"
        )
    theirs_problem, problem = model.config.problem_type, problem_type(task)
    if None not in (theirs_problem, problem) and theirs_problem != problem:
        raise InputError(
            f"{path} was made for {theirs_problem}, but task={task.name} is {problem}: name a "
            "checkpoint that was fine-tuned on this task"
        )


def known_labels(model: ModelConfig) -> list[str] | None:
    """Return the labels of a model whose weights are trained further; None where it names none.

    Raises:
        InputError: Its configuration cannot be read, or is of another architecture.
    """
    if model.weights is Weights.random or model.path is None:
        return None
    check_folder(model.path)
    return names_in(_read_config(model.path).id2label or {})


def save_checkpoint(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    origin: str | None = None,
    pooling: Pooling | None = None,
) -> None:
    """Write a plain Hugging Face folder: under a temporary name first, then renamed.

    Replaces a folder of that name. What a quantized model's weights do not say lies beside them, in
    a file that stock transformers leaves alone.

    Args:
        folder: Where to.
        model: The model.
        tokenizer: Its tokenizer.
        origin: Folder or hub id that it was made from; its `modules.json` is carried along.
        pooling: How its hidden states were made vectors, of a model of embeddings: the folder is
            one of sentence-transformers, too.

    Raises:
        OSError, safetensors.SafetensorError: The disk is full or cannot be written; nothing
            half-written stays.
    """
    with new_folder(folder) as temporary:
        quiet_loading()
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        write_grids(model, temporary)
        if pooling is not None:
            config = model.config.to_dict()
            try:
                source = None if origin is None else _modules_of(origin)
                write_modules(source, temporary, config, STOCK, pooling)
            except InputError as error:  # no reason to lose what was trained
                warn(f"{error}; the checkpoint gets {pooling.value} pooling alone")
                write_modules(None, temporary, config, STOCK, pooling)


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Switch dropout off for a while: nothing random happens then."""
    was_training = model.training
    model.train(False)
    try:
        yield
    finally:
        model.train(was_training)


def longest_text_of(config: PreTrainedConfig) -> int:
    """Return the tokens of the longest text that a model has positions for."""
    return longest_text(config.model_type, config.max_position_embeddings, config.pad_token_id)


def check_vocabulary(features: Sequence[Feature], model: PreTrainedModel, checkpoint: Path) -> None:
    """Make sure that a model has an embedding for every token of some encoded texts.

    Raises:
        InputError: The tokenizer in `checkpoint` is another model's.
    """
    if max(max(feature["input_ids"]) for feature in features) >= model.config.vocab_size:
        raise InputError(f"the tokenizer in {checkpoint} has more tokens than its model")


def check_folder(path: str) -> None:
    """Tell a missing folder from a hub id, before transformers searches the hub for it.

    Raises:
        InputError: `path` looks like a folder, and there is none or it has no config.json.
    """
    folder = Path(path)
    looks_like_folder = path.startswith((".", "/", "~")) or path.count("/") > 1
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            parts = [part for part in ("training", "checkpoint") if (folder / part).is_dir()]
            hint = f": name its folder {parts[0]}" if parts else ""
            raise InputError(
                f"expected a Hugging Face checkpoint at {path}, but it has no config.json{hint}"
            )
    elif looks_like_folder or folder.exists():
        raise InputError(
            f"expected a Hugging Face checkpoint at {path}, but there is no such folder"
        )


def input_names(model: PreTrainedModel) -> list[str]:
    """Name the inputs that a model takes."""
    return inputs_of(getattr(model.config, "type_vocab_size", 1))


def quiet_loading() -> None:
    """Switch off transformers' bars and tables about weights; missing ones become an error."""
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()


def _modules_of(origin: str) -> Path:
    """Return the folder of a model, with what sentence-transformers keeps there if it knows it.

    Raises:
        InputError: The hub, which had the model, cannot be read any more.
    """
    if Path(origin).is_dir():
        return Path(origin)
    wanted = ["modules.json", "*/config.json", "[0-9]_*/*", "*sentence_*config*.json"]
    try:
        return Path(snapshot_download(origin, allow_patterns=wanted))
    except Exception as error:  # HTTP errors, offline
        raise InputError(_cannot_load("pooling", origin, error)) from error


def _load_config(
    model: ModelConfig, task: TaskConfig, tokenizer: PreTrainedTokenizerFast
) -> PreTrainedConfig:
    if model.weights is Weights.random and model.config:
        values = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
        values |= model.config
        try:
            config = AutoConfig.for_model(**values, **_head(task))
        except (ValueError, TypeError) as error:
            raise UsageError(f"model.config is not a transformers configuration: {error}") from None
        _check_architecture(config, f"model={model.name}")
        return config
    if model.path is None:
        raise UsageError(
            f"model={model.name} with model.weights={model.weights.value} needs model.path, a hub "
            "id or a folder"
        )
    check_folder(model.path)
    return _read_config(model.path, **_head(task))


def _head(task: TaskConfig) -> dict[str, Any]:
    """Return what the configuration of a model says about the task: its labels and their loss."""
    about: dict[str, Any] = {"problem_type": problem_type(task)}
    if task.label_names is None:
        return about | {"num_labels": task.num_labels or 2}  # untrained, where nothing tells
    names = dict(enumerate(task.label_names))
    return about | {"id2label": names, "label2id": {name: i for i, name in names.items()}}


def _read_config(path: str, **changes: Any) -> PreTrainedConfig:
    try:
        config = _config_of(path, **changes)
    except InputError as error:
        raise InputError(f"cannot use {path}: {error}") from None
    except Exception as error:  # OSError, ValueError (unknown model_type), KeyError, HTTP errors
        raise InputError(_cannot_load("configuration", path, error)) from error
    assert isinstance(config, PreTrainedConfig)
    _check_architecture(config, path)
    return config


def _config_of(path: str, **changes: Any) -> Any:
    """Read a configuration; of another tool's, what it means."""
    values, _ = PreTrainedConfig.get_config_dict(path)
    if (plain := plain_config(values)) == values:
        return AutoConfig.from_pretrained(path, **changes)
    return transformers.CONFIG_MAPPING[plain["model_type"]].from_dict(plain, **changes)


def _check_architecture(config: PreTrainedConfig, source: str) -> None:
    kind = config.model_type
    if kind not in FAMILIES or getattr(config, "is_decoder", False):
        decoder = " decoder" if getattr(config, "is_decoder", False) else ""
        raise InputError(
            f"{source} is a {kind}{decoder} model, but this toolkit takes encoders of the kinds "
            f"{', '.join(FAMILIES)}"
        )


def _from_pretrained(
    model_class: Any, path: str, config: PreTrainedConfig, is_fine_tuned: bool, **more: Any
) -> PreTrainedModel:
    quiet_loading()
    if (widths := getattr(config, "layer_widths", None)) is not None:
        stock = getattr(model_class, "_model_mapping", {type(config): model_class})[type(config)]
        model_class = _sized(stock, widths)
    try:
        model, found = model_class.from_pretrained(
            path, config=config, dtype=torch.float32, output_loading_info=True, **more
        )
    except Exception as error:  # OSError, SafetensorError, RuntimeError (shapes), HTTP errors
        raise InputError(_cannot_load("weights", path, error)) from error
    assert isinstance(model, PreTrainedModel)
    if widths is not None:
        model.__class__ = stock
    missing_keys = set(found["missing_keys"])
    if is_odd(found["unexpected_keys"]):
        missing_keys = _load_odd(model, path)
    # A pretrained body lacks the task's head, and the pooler if its own task had no use for it.
    parts = ("embeddings", "embeddings_project", "encoder", "transformer")
    body = tuple(f"{model.base_model_prefix}.{part}." for part in parts)
    missing = [key for key in sorted(missing_keys) if is_fine_tuned or key.startswith(body)]
    if missing:
        others = sorted(found["unexpected_keys"])
        raise InputError(
            f"{path} lacks {len(missing)} weights of a {config.model_type} model, such as "
            f"{missing[0]}"
            + (f", and has others, such as {others[0]}" if others else "")
            + ": the checkpoint is damaged or foreign"
            + ("" if missing[0].startswith(body) else ", or not fine-tuned on this task")
        )
    return model


def _load_odd(model: PreTrainedModel, path: str) -> set[str]:
    """Load weights that another tool wrote in its own way; return what the model still lacks."""
    weights, notes = _read_weights(path)
    own, prefix = model.state_dict(), f"{model.base_model_prefix}."
    renamed = {}
    for name, value in weights.items():
        new = name.replace("LayerNorm.gamma", "LayerNorm.weight")
        new = new.replace("LayerNorm.beta", "LayerNorm.bias")
        new = next((n for n in (new, prefix + new, new.removeprefix(prefix)) if n in own), new)
        renamed[new] = value
    try:
        missing = model.load_state_dict(renamed, strict=False).missing_keys
    except RuntimeError as error:  # shapes
        raise InputError(_cannot_load("weights", path, error)) from error
    if notes:
        say(f"{path}: {'; '.join(notes)}")
    there = {own[name].data_ptr() for name in renamed if name in own}
    return {name for name in missing if own[name].data_ptr() not in there}  # tied ones are there


def _read_weights(path: str) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Read a checkpoint's file, without running code that may be in it.

    Raises:
        InputError: It cannot be read, or `plain_weights` refuses it.
    """
    try:
        files: dict[str, Any] = {
            name: cached_file(path, name, _raise_exceptions_for_missing_entries=False)
            for name in (SAFE_WEIGHTS_NAME, WEIGHTS_NAME)
        }
        if not any(files.values()):
            raise InputError(
                f"{path} has no weights: expected {SAFE_WEIGHTS_NAME} or {WEIGHTS_NAME} there"
            )
        if files[SAFE_WEIGHTS_NAME]:
            weights = load_file(files[SAFE_WEIGHTS_NAME])
        else:
            weights = torch.load(files[WEIGHTS_NAME], "cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # OSError, SafetensorError, UnpicklingError, HTTP errors
        raise InputError(_cannot_load("weights", path, error)) from error
    try:
        return plain_weights(weights)
    except InputError as error:
        raise InputError(f"cannot use {path}: {error}") from None


def _find_architecture(path: str, config: PreTrainedConfig) -> str:
    """Name the class that config.json leaves out, by the weights.

    Raises:
        InputError: They have no head that is known.
    """
    weights, _ = _read_weights(path)
    name = architecture_of(weights, config.model_type)
    if name is None:
        raise InputError(
            f"{path}/config.json names no architecture, and the weights have no head that is "
            f'known: write it there, such as "architectures": '
            f'["{_class_prefix(config)}ForSequenceClassification"]'
        )
    say(f"{path}/config.json names no architecture: by its weights it is a {name}")
    return name


def _class_prefix(config: PreTrainedConfig) -> str:
    return type(config).__name__.removesuffix("Config")


def _sized(stock: Any, widths: list[list[int]]) -> Any:
    """Make a class whose models have these [heads, neurons] per layer before weights are loaded."""

    def init(self: Any, config: PreTrainedConfig, *args: Any, **more: Any) -> None:
        stock.__init__(self, config, *args, **more)
        resize(self, widths)

    return type(stock.__name__, (stock,), {"__init__": init})


def _cannot_load(what: str, path: str, error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, UnpicklingError):
        return (
            f"{path} holds Python objects besides weights, which may run code when they are read, "
            "or is damaged: it was not read"
        )
    if Path(path).is_dir():
        if list(Path(path).glob("*.h5")) + list(Path(path).glob("*.msgpack")):
            reason += "; weights of TensorFlow or Flax: convert them with transformers 4 first"
        if isinstance(error, json.JSONDecodeError):
            reason = f"broken JSON, line {error.lineno}"
        return f"cannot read the {what} in {path} ({reason}): the checkpoint is damaged or foreign"
    return (
        f"cannot load the {what} of {path} from the Hugging Face hub "
        f"({type(error).__name__}: {reason}): check the name and the network, or name a local "
        "folder with model=local model.path=DIR"
    )
