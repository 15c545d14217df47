"""Knowledge distillation: the teacher, and a Trainer whose student learns from it."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.data import SequentialSampler
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Trainer

from toolkit.compress.batching import LikeLengths
from toolkit.compress.class_weights import LabelLoss
from toolkit.compress.depth import encoder_layers
from toolkit.compress.distillation import (
    choices,
    distillation_loss,
    embedding_loss,
    evenly_spaced,
    hidden_loss,
    relation_loss,
    taught,
)
from toolkit.compress.model import check_task, input_names, load_checkpoint, load_tokenizer
from toolkit.compress.teacher_outputs import ROW, TeacherOutputs
from toolkit.config import (
    Attention,
    EmbeddingLoss,
    ModelConfig,
    Pooling,
    TaskConfig,
    TeacherConfig,
    TeacherKind,
    Weights,
)
from toolkit.errors import InputError, UsageError
from toolkit.families import MODEL_INPUTS
from toolkit.tasks import kind_of


def load_teacher(
    teacher: TeacherConfig,
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    task: TaskConfig,
) -> PreTrainedModel | None:
    """Load the teacher.

    Args:
        teacher: `self` copies `student` as it is now.
        student: The model before any of its layers is dropped.
        tokenizer: The student's.
        task: Both learn it.

    Returns:
        None with `kind=none`.

    Raises:
        InputError: The teacher cannot be read, belongs to another task, or has another vocabulary.
        UsageError: There is none, and the task has no labels either; or its vectors are longer or
            shorter than the student's.
    """
    if teacher.kind is TeacherKind.none:
        if not kind_of(task).TARGETS:
            raise UsageError(
                f"task={task.name} has no labels, so that without a teacher there is nothing to "
                "learn: add teacher=self, or teacher=dense teacher.path=DIR"
            )
        return None
    if teacher.kind is TeacherKind.self:
        return copy.deepcopy(student)
    path = str(teacher.path)
    model = load_checkpoint(path)
    check_task(model, path, task)
    theirs = load_tokenizer(
        ModelConfig(
            name="teacher",
            path=path,
            weights=Weights.pretrained,
            config={},
            freeze_embeddings=False,
        )
    )
    if theirs.get_vocab() != tokenizer.get_vocab():
        raise InputError(
            f"the teacher at {path} has another vocabulary ({len(theirs)} tokens) than the student "
            f"({len(tokenizer)} tokens), so its logits are not about the same tokens: choose a "
            "teacher made from the same family of models"
        )
    if not kind_of(task).TARGETS:
        _check_equal("hidden_size", "a teacher whose vectors are as long", student, model)
    return model


def needs_states(teacher: TeacherConfig) -> bool:
    """Tell whether more than logits is compared, so that the teacher must run beside the student.

    Hidden states of a data set are thousands of times as many numbers as its logits.
    """
    return teacher.hidden_weight > 0 or teacher.attention is not Attention.none


def map_layers(
    teacher: TeacherConfig, student_layers: int, kept: Sequence[int], teacher_layers: int
) -> list[int]:
    """Choose the teacher's layer that each layer of the student is compared with.

    Args:
        teacher: `layer_map` overrides.
        student_layers: Of the student before any is dropped.
        kept: Its layers that stay.
        teacher_layers: Of the teacher.

    Returns:
        One number per kept layer: its own where both models have been equally deep, otherwise as
        deep in proportion.

    Raises:
        UsageError: `layer_map` does not fit the models.
    """
    if teacher.layer_map is not None:
        chosen = list(teacher.layer_map)
        if len(chosen) != len(kept) or max(chosen) >= teacher_layers:
            raise UsageError(
                f"teacher.layer_map must name, for each of the student's {len(kept)} layers, one "
                f"of the teacher's, 0 to {teacher_layers - 1}; got {chosen}"
            )
        return chosen
    if student_layers == teacher_layers:
        return list(kept)
    return evenly_spaced(len(kept), teacher_layers)


class DistillationTrainer(Trainer):
    """A Trainer whose student also learns from a teacher.

    `(1 - hardness) · labels + hardness · logits + hidden_weight · hidden states +
    attention_weight · attention`, the terms of `toolkit.compress.distillation`; for embeddings the
    first two are the distance of the texts' vectors. The teacher runs
    beside the student; or, for logits alone, it has run before, and `teacher_outputs` holds what it
    said of the training features, whose number each brings along as `ROW`.

    Without either it is an ordinary Trainer, with gradients that are right under gradient
    accumulation and DDP.

    Args:
        layer_map: The teacher's layer for each of the student's; None spaces them evenly.
        pooling: Set for embeddings, which have no labels and train without dropout.
        label_loss: The loss of logits and labels, instead of the model's own.

    Raises:
        UsageError: Hidden states of different sizes, or attention with different numbers of heads,
            are to be compared.
    """

    def __init__(
        self,
        *args: Any,
        teacher: PreTrainedModel | None = None,
        teacher_outputs: TeacherOutputs | None = None,
        hardness: float = 1.0,
        temperature: float = 2.0,
        hidden_weight: float = 0.0,
        attention: Attention = Attention.none,
        attention_weight: float = 1.0,
        layer_map: Sequence[int] | None = None,
        pooling: Pooling | None = None,
        embedding_loss: EmbeddingLoss = EmbeddingLoss.cosine,
        label_loss: LabelLoss | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.hardness = hardness
        self.temperature = temperature
        self.hidden_weight = hidden_weight
        self.attention = attention
        self.attention_weight = attention_weight
        self.pooling = pooling
        self.embedding_loss = embedding_loss
        self.label_loss = label_loss
        self.teacher = teacher
        self.teacher_outputs = teacher_outputs
        assert isinstance(self.model, PreTrainedModel)
        self.student_inputs = input_names(self.model)
        # The loss of these encoders is the mean over one micro-batch. The Trainer believes that any
        # forward with **kwargs has divided by all accumulated items of all processes, and would
        # take steps 2x too large with 2 accumulated micro-batches or 2 processes.
        self.model_accepts_loss_kwargs = False
        if pooling is not None:
            # A vector to hit leaves nothing to overfit; docs/distillation.md measures the gain.
            for module in self.model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
        if teacher is None:
            return
        teacher.train(False).requires_grad_(False).to(device=self.args.device)
        student_layers, teacher_layers = (len(encoder_layers(m)) for m in (self.model, teacher))
        self.layer_map = layer_map or evenly_spaced(student_layers, teacher_layers)
        if hidden_weight > 0:
            _check_equal(
                "hidden_size",
                "teacher.hidden_weight=0 (teacher.attention=values takes any)",
                self.model,
                teacher,
            )
        if attention is not Attention.none:
            _check_equal("num_attention_heads", "teacher.attention=none", self.model, teacher)
            if any(hasattr(m.config, "layer_widths") for m in (self.model, teacher)):
                raise UsageError(
                    f"teacher.attention={attention.value} compares head by head, but heads have "
                    "been removed from a layer: choose teacher.attention=none"
                )
            if self.args.gradient_checkpointing:
                raise UsageError(
                    f"teacher.attention={attention.value} cannot see into checkpointed layers: "
                    "leave trainer.gradient_checkpointing out, or choose teacher.attention=none"
                )
            self.projections = [_keep_projections(m, attention) for m in (self.model, teacher)]

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        # In the examples' own order, which predictions are matched with them by; the Trainer's
        # sampler would group them by length, too.
        return SequentialSampler(eval_dataset)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        features: Any = self.train_dataset if train_dataset is None else train_dataset
        lengths = [len(feature["input_ids"]) for feature in features]
        args = self.args
        step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        seed = args.seed if args.data_seed is None else args.data_seed
        return LikeLengths(lengths, step, seed, lambda: int(self.state.epoch or 0))

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Compute the loss of one micro-batch; outside training it is the loss on the labels."""
        own = {
            name: value
            for name, value in inputs.items()
            if name in self.student_inputs or name not in (*MODEL_INPUTS, ROW)
        }
        is_taught = model.training and (self.teacher or self.teacher_outputs) is not None
        if is_taught and self.hidden_weight > 0:
            own["output_hidden_states"] = True
        if self.pooling is None:
            loss, outputs = super().compute_loss(model, own, return_outputs=True)
            if self.label_loss is not None:
                loss = self.label_loss(outputs["logits"], inputs["labels"])
        else:
            loss, outputs = torch.zeros(()), model(**own)
        if is_taught:
            loss = self._add_teacher(loss, outputs, inputs)
        return (loss, outputs) if return_outputs else loss

    def _add_teacher(
        self, loss: torch.Tensor, outputs: Any, inputs: dict[str, Any]
    ) -> torch.Tensor:
        ids = inputs["input_ids"]
        mask = inputs.get("attention_mask", torch.ones_like(ids))
        students = taught(outputs, mask, self.pooling)
        if self.teacher_outputs is not None:
            teachers = self.teacher_outputs.look_up(inputs[ROW], ids.shape[1])
        else:
            theirs: Any = self._run_teacher(inputs)
            teachers = taught(theirs, mask, self.pooling)
        if self.pooling is not None:
            loss = embedding_loss(students["embedding"], teachers["embedding"], self.embedding_loss)
        else:
            teachers = {name: teachers[name] for name in students}
            pair = choices(students, mask), choices(teachers, mask)
            problem: Any = self.model.config.problem_type  # type: ignore[union-attr]
            loss = distillation_loss(*pair, loss, self.hardness, self.temperature, problem)
        if self.hidden_weight > 0:
            ours = outputs["hidden_states"][1:]  # 0 are the embeddings
            states = [theirs["hidden_states"][1 + layer] for layer in self.layer_map]
            loss = loss + self.hidden_weight * hidden_loss(ours, states, mask)
        if self.attention is not Attention.none:
            of_student, of_teacher = self.projections
            pairs = [of_teacher[layer] for layer in self.layer_map]
            heads = self.model.config.num_attention_heads  # type: ignore[union-attr]
            distance = relation_loss(of_student, pairs, heads, mask)  # type: ignore[arg-type]
            loss = loss + self.attention_weight * distance
        return loss

    def _run_teacher(self, inputs: dict[str, Any]) -> Any:
        assert self.teacher is not None
        theirs = {name: inputs[name] for name in input_names(self.teacher) if name in inputs}
        if self.hidden_weight > 0:
            theirs["output_hidden_states"] = True
        with torch.no_grad(), self.accelerator.autocast():
            return self.teacher(**theirs)


def _check_equal(
    size: str, remedy: str, student: PreTrainedModel, teacher: PreTrainedModel
) -> None:
    ours, theirs = (getattr(model.config, size) for model in (student, teacher))
    if ours != theirs:
        raise UsageError(
            f"the student has {size}={ours}, the teacher {theirs}, which cannot be compared: "
            f"choose {remedy}"
        )


def _keep_projections(model: PreTrainedModel, attention: Attention) -> list[list[torch.Tensor]]:
    """Let every layer leave what its attention is computed from, at each forward pass.

    Returns:
        Per layer a pair of (B, T, D): query and key, or the value twice. Filled by the model, and
        filled anew by the next pass.
    """
    chosen = (0, 1) if attention is Attention.maps else (2, 2)
    kept: list[list[torch.Tensor]] = []
    for layer in encoder_layers(model):
        pair = [torch.empty(0), torch.empty(0)]
        kept.append(pair)
        # query, key and value come first, as in `toolkit.families.LINEARS`
        linears = [module for module in layer.modules() if isinstance(module, nn.Linear)]
        for place, number in enumerate(chosen):

            def keep(_: Any, __: Any, output: Any, pair: Any = pair, place: int = place) -> None:
                pair[place] = output

            linears[number].register_forward_hook(keep)
    return kept
