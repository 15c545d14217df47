"""Knowledge distillation: the teacher, and a Trainer whose student learns from it."""

import copy
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Trainer

from toolkit.compress.distillation import choices, distillation_loss, logits_of
from toolkit.compress.model import check_task, input_names, load_checkpoint, load_tokenizer
from toolkit.compress.teacher_outputs import ROW, TeacherOutputs
from toolkit.config import ModelConfig, TaskConfig, TeacherConfig, TeacherKind, Weights
from toolkit.errors import InputError
from toolkit.families import MODEL_INPUTS


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

    The teacher runs beside the student; or it has run before, and `teacher_outputs` holds what it
    said of the training features, whose number each brings along as `ROW`.

    Without either it is an ordinary Trainer, with gradients that are right under gradient
    accumulation and DDP.
    """

    def __init__(
        self,
        *args: Any,
        teacher: PreTrainedModel | None = None,
        teacher_outputs: TeacherOutputs | None = None,
        hardness: float = 1.0,
        temperature: float = 2.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.hardness = hardness
        self.temperature = temperature
        self.teacher = teacher
        self.teacher_outputs = teacher_outputs
        assert isinstance(self.model, PreTrainedModel)
        self.student_inputs = input_names(self.model)
        # The loss of these encoders is the mean over one micro-batch. The Trainer believes that any
        # forward with **kwargs has divided by all accumulated items of all processes, and would
        # take steps 2x too large with 2 accumulated micro-batches or 2 processes.
        self.model_accepts_loss_kwargs = False
        if teacher is not None:
            teacher.train(False).requires_grad_(False).to(device=self.args.device)

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
        loss, outputs = super().compute_loss(model, own, return_outputs=True)
        if model.training and (self.teacher is not None or self.teacher_outputs is not None):
            ids = inputs["input_ids"]
            mask = inputs.get("attention_mask", torch.ones_like(ids))
            students, theirs = logits_of(outputs), self._teacher_logits(inputs)
            theirs = {name: theirs[name] for name in students}
            loss = distillation_loss(
                choices(students, mask),
                choices(theirs, mask),
                loss,
                self.hardness,
                self.temperature,
            )
        return (loss, outputs) if return_outputs else loss

    def _teacher_logits(self, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        if self.teacher_outputs is not None:
            return self.teacher_outputs.look_up(inputs[ROW], inputs["input_ids"].shape[1])
        assert self.teacher is not None
        theirs = {name: inputs[name] for name in input_names(self.teacher) if name in inputs}
        with torch.no_grad(), self.accelerator.autocast():
            return logits_of(self.teacher(**theirs))
