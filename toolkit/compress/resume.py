"""What a run directory holds, and how an interrupted run goes on in it."""

import errno
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from toolkit.compress.quantization.callback import RANGES_FILE
from toolkit.compress.sparsity.callback import MASKS_FILE
from toolkit.config import NOT_COMPARED, TrainRoot
from toolkit.errors import InputError, UsageError
from toolkit.files import write_text
from toolkit.progress import is_first_process, say
from toolkit.record import plain

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# How safetensors (Rust) and torch.save (C++) word these errors.
FULL_DISK_TEXTS = ("No space left", "quota exceeded", "File too large", "failed writing file")


def is_finished(config: TrainRoot, output: Path) -> bool:
    """Tell whether the run directory holds this run, finished; refuse to overwrite any other.

    Raises:
        UsageError: The directory holds a run, and `resume` is not set; or, with it, an unfinished
            run of another configuration.
    """
    # All processes of DDP decide alike: none writes before all have met in TrainingArguments.
    is_done, state = (output / "record.json").is_file(), output / "trainer" / "config.json"
    if not config.resume and (is_done or state.is_file()):
        raise UsageError(
            f"output_dir={output} already holds {'a finished' if is_done else 'an interrupted'} "
            "run: continue it with resume=true, or choose another output_dir"
        )
    if is_done:
        say(f"{output} holds the finished run; it is not trained again")
    elif state.is_file():
        before, now = json.loads(state.read_text(encoding="utf-8")), compared(config)
        changed = sorted(
            key for key in before.keys() | now.keys() if before.get(key) != now.get(key)
        )
        if changed:
            raise UsageError(
                f"resume=true continues the run in {output} only with its own configuration; "
                f"changed are {', '.join(changed)} ({changed[0]} was {before.get(changed[0])})"
            )
    return is_done


def prepare(config: TrainRoot, output: Path) -> str | None:
    """Note the configuration for a later `resume=true`; return the checkpoint to continue from."""
    folder = output / "trainer"
    if not config.resume:
        checkpoint = None
    else:
        written_last = [MASKS_FILE] * config.sparsity.is_on
        written_last += [RANGES_FILE] * config.quantization.is_on
        checkpoint = last_checkpoint(folder, written_last)
    note(config, output)
    if config.resume:
        say(f"continuing from {checkpoint}" if checkpoint else "nothing to resume: starting")
    return str(checkpoint) if checkpoint else None


def note(config: TrainRoot, output: Path) -> None:
    """Note the configuration, which a later `resume=true` must have."""
    if is_first_process():
        text = json.dumps(compared(config), indent=1)
        write_text(output / "trainer" / "config.json", text)


def last_checkpoint(folder: Path, written_last: Sequence[str]) -> Path | None:
    """Find the Trainer's latest complete checkpoint: one that has the files written last."""
    last_files = ["trainer_state.json", *written_last]
    complete = [
        path
        for path in folder.glob("checkpoint-*")
        if all((path / name).is_file() for name in last_files)
    ]
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


@contextmanager
def explain_full_disk(output: Path) -> Iterator[None]:
    """Turn the various errors of a full disk into one sentence.

    Raises:
        InputError: Writing failed for lack of space.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        is_full = getattr(error, "errno", None) in FULL_DISK
        if not is_full and not any(text in str(error) for text in FULL_DISK_TEXTS):
            raise
        raise InputError(
            f"cannot write to {output}, the disk is full ({error}): make room, then continue with "
            "resume=true and the same output_dir"
        ) from error


def clean_up(output: Path) -> None:
    """Drop what only an unfinished run needs; the optimizer's state is twice the model's size.

    What `trainer.report_to=tensorboard` wrote is kept, as `tensorboard/`.
    """
    if (output / "trainer" / "runs").is_dir():
        (output / "trainer" / "runs").rename(output / "tensorboard")
    shutil.rmtree(output / "trainer")


def compared(config: TrainRoot) -> dict[str, str]:
    """Flatten the options that the weights depend on: dotted names and values as text."""
    return dict(_flat(plain(asdict(config)), ""))


def _flat(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if name in NOT_COMPARED:
            continue
        if isinstance(value, dict):
            yield from _flat(value, f"{name}.")
        else:
            yield name, str(value)
