"""Models and tokenizers: loaded from the hub or a folder, or made anew. Writes plain HF folders."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from toolkit.compress.quantization.layers import write_grids
from toolkit.compress.structured.widths import resize
from toolkit.config import ModelConfig, TaskConfig, Weights
from toolkit.errors import InputError, UsageError
from toolkit.families import FAMILIES, inputs_of, longest_text
from toolkit.files import new_folder
from toolkit.tasks import kind_of, problem_type
from toolkit.tasks.demo import make_tokenizer
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
    check_folder(model.path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(model.path)
    except Exception as error:  # OSError, ValueError, bare Exception of the Rust part, HTTP errors
        raise InputError(_cannot_load("tokenizer", model.path, error)) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise InputError(
            f"the tokenizer of {model.path} has no fast version (tokenizer.json), which this "
            "toolkit needs; convert it with transformers first"
        )
    return tokenizer


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
    name = (config.architectures or ["no architecture"])[0]
    model_class = getattr(transformers, name, None)
    if not isinstance(model_class, type) or not issubclass(model_class, PreTrainedModel):
        raise InputError(
            f"{path}/config.json names the architecture {name!r}, which transformers "
            f"{transformers.__version__} does not have"
        )
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
    theirs, names = names_in(model.config.id2label), task.label_names
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
    return names_in(_read_config(model.path).id2label)


def save_checkpoint(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Write a plain Hugging Face folder: under a temporary name first, then renamed.

    Replaces a folder of that name. What a quantized model's weights do not say lies beside them, in
    a file that stock transformers leaves alone.

    Raises:
        OSError, safetensors.SafetensorError: The disk is full or cannot be written; nothing
            half-written stays.
    """
    with new_folder(folder) as temporary:
        quiet_loading()
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        write_grids(model, temporary)


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


def check_folder(path: str) -> None:
    """Tell a missing folder from a hub id, before transformers searches the hub for it.

    Raises:
        InputError: `path` looks like a folder, and there is none or it has no config.json.
    """
    folder = Path(path)
    looks_like_folder = path.startswith((".", "/", "~")) or path.count("/") > 1
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(
                f"expected a Hugging Face checkpoint at {path}, but it has no config.json"
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
        config = AutoConfig.from_pretrained(path, **changes)
    except Exception as error:  # OSError, ValueError (unknown model_type), KeyError, HTTP errors
        raise InputError(_cannot_load("configuration", path, error)) from error
    assert isinstance(config, PreTrainedConfig)
    _check_architecture(config, path)
    return config


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
    # A pretrained body lacks the task's head, and the pooler if its own task had no use for it.
    parts = ("embeddings", "embeddings_project", "encoder", "transformer")
    body = tuple(f"{model.base_model_prefix}.{part}." for part in parts)
    missing = [
        key for key in sorted(found["missing_keys"]) if is_fine_tuned or key.startswith(body)
    ]
    if missing:
        raise InputError(
            f"{path} lacks {len(missing)} weights of a {config.model_type} model, such as "
            f"{missing[0]}: the checkpoint is damaged or foreign"
            + ("" if missing[0].startswith(body) else ", or not fine-tuned on this task")
        )
    return model


def _sized(stock: Any, widths: list[list[int]]) -> Any:
    """Make a class whose models have these [heads, neurons] per layer before weights are loaded."""

    def init(self: Any, config: PreTrainedConfig, *args: Any, **more: Any) -> None:
        stock.__init__(self, config, *args, **more)
        resize(self, widths)

    return type(stock.__name__, (stock,), {"__init__": init})


def _cannot_load(what: str, path: str, error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [""])[0]
    if Path(path).is_dir():
        if isinstance(error, json.JSONDecodeError):
            reason = f"broken JSON, line {error.lineno}"
        return f"cannot read the {what} in {path} ({reason}): the checkpoint is damaged or foreign"
    return (
        f"cannot load the {what} of {path} from the Hugging Face hub "
        f"({type(error).__name__}: {reason}): check the name and the network, or name a local "
        "folder with model=local model.path=DIR"
    )
