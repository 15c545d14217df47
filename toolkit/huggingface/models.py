"""Models that answer as transformers' own classes do, computed by the sparse engine.

B texts, T tokens, C classes, D features, V words.
"""

import json
import os
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from transformers import AutoConfig, PreTrainedConfig
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    MaskedLMOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.models.auto import modeling_auto
from transformers.utils.generic import ModelOutput

from toolkit.engine import Engine
from toolkit.engine.kernel_choice import path_beside
from toolkit.engine.reader.sparse_file import SUFFIX
from toolkit.errors import InputError
from toolkit.families import MODEL_INPUTS
from toolkit.files import added_to, read_text
from toolkit.huggingface.exports import find_export, find_folder

Tensor = Any  # a torch.Tensor, a NumPy array, or nested lists of numbers


class SparseModel:
    """What the classes below share; each is one head.

    Calls may come from several threads at once. Tensors of torch's give tensors, on the device they
    came from, all else gives NumPy arrays; the engine runs on the CPU.

    Attributes:
        engine: What computes.
        config: transformers' configuration of the model.
        folder: The export.
    """

    head: ClassVar[str]  # how the names of transformers' classes with this head end
    output_class: ClassVar[type[ModelOutput]]
    # What transformers' pipelines ask of a model besides.
    device = torch.device("cpu")
    dtype = torch.float32
    base_model_prefix = ""
    input_modalities = ("text",)

    def __init__(self, engine: Engine, config: PreTrainedConfig, folder: Path) -> None:
        self.engine = engine
        self.config = config
        self.folder = folder

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        num_threads: int = 0,
        isa: str = "auto",
        kernel: str = "auto",
        precision: str = "fp32",
        keep_timings: bool = True,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Load an export folder, a checkpoint folder, or either of them from the hub.

        A checkpoint is exported first, once, into a cache, and a line in the log says so.

        Args:
            source: A folder, or a hub id.
            num_threads: This and the next four as in `Engine.load`.
            isa: …
            kernel: …
            precision: …
            keep_timings: …
            revision: This and the next three as in `huggingface_hub.snapshot_download`.
            token: …
            cache_dir: …
            local_files_only: …

        Raises:
            InputError: There is no such model, it is damaged, or has another head.
            GateError: A checkpoint was exported, and the engine's outputs are not torch's.
            ValueError: This CPU does not support `isa`, `kernel` or `precision`.
        """
        folder = find_folder(source, revision, token, cache_dir, local_files_only)
        facts = json.loads(read_text(folder / "config.json", cls.__name__))
        architecture = (facts.get("architectures") or [""])[0]
        if architecture and not architecture.endswith(cls.head):
            raise InputError(
                f"{source} holds a {architecture}, but {cls.__name__} is for a model whose name "
                f"ends with {cls.head}: choose the class of its head"
            )
        folder = find_export(folder)
        config = AutoConfig.from_pretrained(folder)
        engine = Engine.load(folder, num_threads, isa, kernel, precision, keep_timings)
        known = [field.name for field in fields(cast(Any, cls.output_class))]
        if foreign := [name for name in engine.outputs if name not in known]:
            raise InputError(
                f"{source} has the output {foreign[0]!r}, which a {cls.output_class.__name__} has "
                "no place for: choose the class of its head, or run it with toolkit.engine.Engine"
            )
        return cls(engine, config, folder)

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], safe_serialization: bool = True
    ) -> None:
        """Copy the export, model card and tokenizer included, to another folder.

        Args:
            save_directory: What else lies there stays.
            safe_serialization: Ignored; transformers and sentence-transformers give it.

        Raises:
            InputError: The disk is full, or the folder cannot be written.
        """
        target = Path(save_directory)
        if target.resolve() == self.folder.resolve():
            return
        skipped = shutil.ignore_patterns(".*", path_beside(Path("*")).name)
        with added_to(target, last="model.onnx", also=f"model{SUFFIX}") as partial:
            shutil.copytree(self.folder, partial, ignore=skipped, dirs_exist_ok=True)
            facts = partial / "export.json"
            if facts.is_file():
                content = json.loads(facts.read_text(encoding="utf-8"))
                checkpoint = (self.folder / content["checkpoint"]).resolve()
                content["checkpoint"] = os.path.relpath(checkpoint, target.resolve())
                facts.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run one batch; as `forward`."""
        return self.forward(*args, **kwargs)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor = None,
        token_type_ids: Tensor = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> Any:
        """Run one batch.

        Args:
            input_ids: (B, T), int32 or int64, as the next two.
            attention_mask: None stands for ones.
            token_type_ids: None stands for zeros.
            return_dict: False gives a tuple.
            others: Refused unless they are None or False: an export computes no loss, attention
                maps or hidden states of inner layers, and takes no positions.

        Returns:
            The `ModelOutput` of transformers' class with this head. At masked positions hidden
            states and logits of tokens hold no information.

        Raises:
            ValueError: An input is missing, unknown, or of another type, shape or range.
        """
        for name, value in others.items():
            if value is not None and value is not False:
                raise ValueError(
                    f"{name} is nothing that an export knows: it takes {', '.join(MODEL_INPUTS)} "
                    f"and gives {', '.join(self.engine.outputs)}; use the checkpoint instead"
                )
        ids = _as_array(input_ids)
        given = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        given["token_type_ids"] = np.zeros_like(ids)
        for name, value in (("attention_mask", attention_mask), ("token_type_ids", token_type_ids)):
            if value is not None:
                given[name] = _as_array(value)
        for name in set(given) - set(self.engine.inputs):
            if given.pop(name).any() and name == "token_type_ids":
                raise ValueError("this model has one type of token: token_type_ids must be zeros")
        found: dict[str, Any] = dict(self.engine.run(given))
        if isinstance(input_ids, torch.Tensor):
            found = {
                name: torch.from_numpy(array).to(input_ids.device) for name, array in found.items()
            }
        outputs = self.output_class(**found)
        return outputs.to_tuple() if return_dict is False else outputs

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Stay on the CPU in float32, where the engine is.

        Raises:
            ValueError: Another device or type is asked for.
        """
        for wanted in (*args, *kwargs.values()):
            if isinstance(wanted, torch.dtype) and wanted is not self.dtype:
                raise ValueError("choose a precision with from_pretrained(…, precision=…)")
            if isinstance(wanted, (str, torch.device)) and torch.device(wanted).type != "cpu":
                raise ValueError(f"the sparse engine runs on the CPU, not on {wanted}")
        return self

    def eval(self) -> Self:
        """Return the model: it never trains."""
        return self

    def can_generate(self) -> bool:
        """Return False: an encoder writes no texts."""
        return False


class SparseModelForQuestionAnswering(SparseModel):
    """`start_logits` and `end_logits`, (B, T)."""

    head = "ForQuestionAnswering"
    output_class = QuestionAnsweringModelOutput


class SparseModelForSequenceClassification(SparseModel):
    """`logits`, (B, C)."""

    head = "ForSequenceClassification"
    output_class = SequenceClassifierOutput


class SparseModelForTokenClassification(SparseModel):
    """`logits`, (B, T, C)."""

    head = "ForTokenClassification"
    output_class = TokenClassifierOutput


class SparseModelForFeatureExtraction(SparseModel):
    """`last_hidden_state` (B, T, D), and `pooler_output` (B, D) of a model that has a pooler."""

    head = "Model"
    output_class = BaseModelOutputWithPooling


class SparseModelForMaskedLM(SparseModel):
    """`logits`, (B, T, V)."""

    head = "ForMaskedLM"
    output_class = MaskedLMOutput


def _as_array(value: Tensor) -> Any:
    return value.numpy(force=True) if isinstance(value, torch.Tensor) else np.asarray(value)


def _introduce() -> None:
    """Tell transformers' pipelines the names of these classes, or each logs that it knows none."""
    for names, model_class in (
        (modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
         SparseModelForSequenceClassification),
        (modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
         SparseModelForTokenClassification),
        (modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, SparseModelForMaskedLM),
    ):  # fmt: skip
        names["toolkit"] = model_class.__name__


_introduce()
