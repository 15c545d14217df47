"""Knowledge distillation: the loss as a pure function, then a Trainer that computes it.

B: examples of a batch, C: classes, or token positions for question answering.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import SequentialSampler
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Trainer

from toolkit.compress.batching import LikeLengths
from toolkit.compress.model import check_task, input_names, load_checkpoint, load_tokenizer
from toolkit.config import ModelConfig, TaskConfig, TeacherConfig, TeacherKind, Weights
from toolkit.errors import InputError
from toolkit.families import MODEL_INPUTS


def distillation_loss(
    student_logits: tuple[torch.Tensor, ...],
    teacher_logits: tuple[torch.Tensor, ...],
    labels_loss: torch.Tensor,
    hardness: float,
    temperature: float,
) -> torch.Tensor:
    """Mix the loss on the labels with the distance from the teacher.

    `(1 - h) · CE + h · T² · KL(softmax(t / T) || softmax(s / T))`; KL is summed over the
    classes and averaged over the batch. T² keeps the gradient's size whatever the temperature.

    Args:
        student_logits: (B, C) each: one for classification, start and end for question answering,
            whose distances are averaged.
        teacher_logits: Of the same shapes.
        labels_loss: CE, a scalar.
        hardness: h in [0, 1]; 1 ignores the labels.
        temperature: T > 0.

    Returns:
        A scalar.

    Source: Hinton et al. 2015, "Distilling the knowledge in a neural network", section 2.
    """
    distances = [
        F.kl_div(
            F.log_softmax(student / temperature, dim=-1),
            F.log_softmax(teacher / temperature, dim=-1),
            log_target=True,
            reduction="batchmean",
        )
        for student, teacher in zip(student_logits, teacher_logits, strict=True)
    ]
    distance = torch.stack(distances).mean() * temperature**2
    return (1.0 - hardness) * labels_loss + hardness * distance


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
    """
    if teacher.kind is TeacherKind.none:
        return None
    if teacher.kind is TeacherKind.self:
        return copy.deepcopy(student)
    path = str(teacher.path)
    model = load_checkpoint(path)
    check_task(model, path, task)
    theirs = load_tokenizer(
        ModelConfig(name="teacher", path=path, weights=Weights.pretrained, config={})
    )
    if theirs.get_vocab() != tokenizer.get_vocab():
        raise InputError(
            f"the teacher at {path} has another vocabulary ({len(theirs)} tokens) than the student "
            f"({len(tokenizer)} tokens), so its logits are not about the same tokens: choose a "
            "teacher made from the same family of models"
        )
    return model


class DistillationTrainer(Trainer):
    """A Trainer whose student also learns from a teacher's logits.

    Without a teacher it is an ordinary Trainer, with gradients that are right under gradient
    accumulation and DDP.
    """

    def __init__(
        self,
        *args: Any,
        teacher: PreTrainedModel | None = None,
        hardness: float = 1.0,
        temperature: float = 2.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.hardness = hardness
        self.temperature = temperature
        self.teacher = teacher
        assert isinstance(self.model, PreTrainedModel)
        self.student_inputs = input_names(self.model)
        # The loss of these encoders is the mean over one micro-batch. The Trainer believes that any
        # forward with **kwargs has divided by all accumulated items of all processes, and would
        # take steps 2x too large with 2 accumulated micro-batches or 2 processes.
        self.model_accepts_loss_kwargs = False
        if teacher is not None:
            teacher.train(False).requires_grad_(False).to(device=self.args.device)

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
        return LikeLengths(lengths, step)

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
            if name not in MODEL_INPUTS or name in self.student_inputs
        }
        loss, outputs = super().compute_loss(model, own, return_outputs=True)
        if self.teacher is not None and model.training:
            theirs = {name: inputs[name] for name in input_names(self.teacher) if name in inputs}
            with torch.no_grad(), self.accelerator.autocast():
                teacher_outputs = self.teacher(**theirs)
            loss = distillation_loss(
                _logits(outputs), _logits(teacher_outputs), loss, self.hardness, self.temperature
            )
        return (loss, outputs) if return_outputs else loss


def _logits(outputs: Any) -> tuple[torch.Tensor, ...]:
    return tuple(value.float() for name, value in outputs.items() if name.endswith("logits"))
