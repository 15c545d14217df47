"""A teacher's logits, or vectors, for all training inputs: computed once, kept, looked up.

N: inputs, T: tokens of an input, B: inputs of a batch.
"""

import hashlib
import json
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, TrainingArguments

from toolkit.compress.distillation import is_per_token, taught
from toolkit.compress.model import input_names
from toolkit.config import Pooling
from toolkit.errors import InputError
from toolkit.files import new_file
from toolkit.progress import bar, is_first_process, say
from toolkit.tasks.features import Feature, collate

ROW = "teacher_row"  # a training feature's number among the N
BATCH_TOKENS = 8192  # of one forward pass, padding included: many short texts or few long ones
FORMAT = 1  # part of the key: raised when what is computed or stored changes


@dataclass(frozen=True)
class TeacherOutputs:
    """What the teacher says of N inputs.

    Attributes:
        of_inputs: By output, (N, …) float32.
        of_tokens: By output, (sum of all T, …) float32.
        starts: (N + 1,) int64, an input's first row in `of_tokens`, and the end.
    """

    of_inputs: dict[str, NDArray[np.float32]]
    of_tokens: dict[str, NDArray[np.float32]]
    starts: NDArray[np.int64]

    def look_up(self, rows: torch.Tensor, length: int) -> dict[str, torch.Tensor]:
        """Return the outputs for one batch.

        Args:
            rows: (B,) int64, numbers of inputs.
            length: Tokens per text of the batch, padding included.

        Returns:
            (B, …), or (B, length, …) with 0 at padding, on the device of `rows`.
        """
        numbers = rows.tolist()
        found = {name: torch.from_numpy(values[numbers]) for name, values in self.of_inputs.items()}
        for name, values in self.of_tokens.items():
            padded = np.zeros((len(numbers), length, *values.shape[1:]), dtype=np.float32)
            for row, number in zip(padded, numbers, strict=True):
                tokens = values[self.starts[number] : self.starts[number + 1]]
                row[: len(tokens)] = tokens
            found[name] = torch.from_numpy(padded)
        return {name: tensor.to(rows.device) for name, tensor in found.items()}


def pays(arguments: TrainingArguments, count: int) -> bool:
    """Tell whether training sees all `count` inputs, so that one pass over them costs no more."""
    if arguments.max_steps <= 0:
        return arguments.num_train_epochs >= 1
    per_step = arguments.train_batch_size * arguments.gradient_accumulation_steps
    return bool(arguments.max_steps * per_step * arguments.world_size >= count)


def find_outputs(
    teacher: PreTrainedModel,
    features: Sequence[Feature],
    pad_id: int,
    arguments: TrainingArguments,
    cache: Path | None,
    pooling: Pooling | None = None,
) -> TeacherOutputs:
    """Read the teacher's outputs from the cache, or compute and keep them.

    Args:
        teacher: Computes on the device and in the precision of the training.
        features: The training inputs, in the order of their `ROW`.
        pad_id: Id of the padding token.
        arguments: Device and precision.
        cache: Folder of earlier outputs; None keeps nothing. A file is whole or not there, so
            several runs may share it; a damaged one is replaced.
        pooling: Set for embeddings.

    Raises:
        InputError: The folder cannot be written.
    """
    dtype = torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else None
    path = None
    if cache is not None:
        path = cache / f"{key_of(teacher, features, pad_id, str(dtype), pooling)}.npz"
        found = _read(path, len(features))
        if found is not None:
            say(f"teacher: its outputs for {len(features)} inputs are in {path}")
            return found
    start = time.perf_counter()
    teacher.to(device=arguments.device)  # type: ignore[call-arg]  # its decorator hides `self`
    outputs = compute(teacher, features, pad_id, dtype, pooling)
    seconds = time.perf_counter() - start
    say(
        f"teacher: one pass over {len(features)} inputs took {seconds:.1f} s "
        f"({len(features) / seconds:.0f}/s)" + (f", kept in {path}" if path else "")
    )
    if path is not None and is_first_process():
        _write(path, outputs)
    return outputs


def compute(
    teacher: PreTrainedModel,
    features: Sequence[Feature],
    pad_id: int,
    dtype: torch.dtype | None,
    pooling: Pooling | None = None,
) -> TeacherOutputs:
    """Run the teacher once over all inputs, in batches of similar length.

    Args:
        teacher: Switched to evaluation; left so.
        features: N inputs, as `toolkit.tasks.encode` returns them.
        pad_id: Id of the padding token.
        dtype: Precision of autocast; None computes in the weights' own.
        pooling: Set for embeddings.
    """
    teacher.train(False)
    names, device = input_names(teacher), teacher.device
    lengths = np.array([len(feature["input_ids"]) for feature in features])
    found: dict[str, list[Any]] = {}
    per_token = set()
    for batch in bar(batches(lengths), "teacher"):
        arrays = collate([features[i] for i in batch], pad_id)
        inputs = {name: torch.from_numpy(arrays[name]).to(device) for name in names}
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype is not None):
            outputs = taught(teacher(**inputs), inputs["attention_mask"], pooling)
        for name, value in outputs.items():
            rows = found.setdefault(name, [None] * len(features))
            if is_token := is_per_token(name, value):
                per_token.add(name)
            for i, row in zip(batch, value.cpu().numpy(), strict=True):
                rows[i] = (row[: lengths[i]] if is_token else row).copy()
    return TeacherOutputs(
        {name: np.stack(rows) for name, rows in found.items() if name not in per_token},
        {name: np.concatenate(rows) for name, rows in found.items() if name in per_token},
        np.concatenate([[0], np.cumsum(lengths)]),
    )


def batches(lengths: NDArray[np.int64]) -> list[list[int]]:
    """Group inputs, longest first, so that a padded batch has at most `BATCH_TOKENS` tokens."""
    order = np.argsort(-lengths, kind="stable").tolist()
    groups: list[list[int]] = []
    for i in order:
        if not groups or (len(groups[-1]) + 1) * lengths[groups[-1][0]] > BATCH_TOKENS:
            groups.append([])
        groups[-1].append(i)
    return groups


def key_of(
    teacher: PreTrainedModel,
    features: Sequence[Feature],
    pad_id: int,
    precision: str,
    pooling: Pooling | None = None,
) -> str:
    """Name what the outputs depend on: 32 hexadecimal digits.

    They are the teacher's weights and configuration, the encoded inputs (data and tokenizer in
    one), the precision, the pooling, and torch's version, whose kernels may round in another way.
    """
    config = {
        name: value
        for name, value in teacher.config.to_dict().items()
        if name not in ("_name_or_path", "transformers_version")
    }
    facts = [FORMAT, type(teacher).__name__, config, pad_id, precision, pooling, torch.__version__]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for name, value in sorted(teacher.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        # as bytes: NumPy knows no bfloat16
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    for name in input_names(teacher):
        for feature in features:
            values = np.asarray(feature[name], dtype=np.int64)
            digest.update(f"{name} {len(values)}".encode())
            digest.update(values.tobytes())
    return digest.hexdigest()[:32]


def _read(path: Path, count: int) -> TeacherOutputs | None:
    """Read a file of the cache; say so and return None if it is damaged."""
    if not path.is_file():
        return None
    parts: dict[str, dict[str, Any]] = {"inputs": {}, "tokens": {}}
    try:
        # compares every array's checksum; given a name, it leaves a damaged file open
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            starts = file["starts"]
            for key in file.files:
                if key != "starts":
                    part, _, name = key.partition(".")
                    parts[part][name] = file[key]
        if len(starts) != count + 1:
            raise ValueError(f"{len(starts) - 1} inputs")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        say(f"teacher: {path} is damaged ({error}) and is made again")
        return None
    return TeacherOutputs(parts["inputs"], parts["tokens"], starts)


def _write(path: Path, outputs: TeacherOutputs) -> None:
    arrays: dict[str, Any] = {
        **{f"inputs.{name}": values for name, values in outputs.of_inputs.items()},
        **{f"tokens.{name}": values for name, values in outputs.of_tokens.items()},
    }
    try:
        with new_file(path) as temporary, temporary.open("wb") as file:
            np.savez(file, starts=outputs.starts, **arrays)
    except OSError as error:
        raise InputError(
            f"cannot write the teacher's outputs to {path}: {error.strerror or error}; choose "
            "another folder with teacher.cache=DIR, or keep none with teacher.cache=null"
        ) from error
