"""Where the export lies that a user names: a folder, a checkpoint exported on the fly, the hub."""

import hashlib
import logging
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from huggingface_hub import cached_assets_path, snapshot_download

from toolkit import __version__
from toolkit.compress.model import check_folder
from toolkit.engine.reader.graph import find_file
from toolkit.errors import CODES, InputError
from toolkit.overrides import quote

# Weights in other forms, which some repositories on the hub have beside model.safetensors.
NOT_WANTED = ("*.bin", "*.h5", "*.msgpack", "*.ot", "*.pt", "onnx/*", "openvino/*", "coreml/*")

logger = logging.getLogger(__name__)


def find_folder(
    source: str | Path,
    revision: str | None,
    token: str | bool | None,
    cache_dir: str | Path | None,
    local_files_only: bool,
) -> Path:
    """Return the folder that `source` names, fetched from the hub if it is none here.

    Raises:
        InputError: There is no such folder, or the hub cannot be read.
    """
    check_folder(str(source))
    if Path(source).is_dir():
        return Path(source)
    try:
        folder = snapshot_download(
            str(source),
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            ignore_patterns=list(NOT_WANTED),
        )
    except Exception as error:  # HTTP errors, no such repository, offline, no valid name
        reason = (str(error).strip().splitlines() or [""])[0]
        raise InputError(
            f"cannot load {source} from the Hugging Face hub ({type(error).__name__}: {reason}): "
            "check the name and the network, or name a local folder"
        ) from error
    return Path(folder)


def find_export(folder: Path) -> Path:
    """Return the export in a folder; of a checkpoint, export it first, which is said aloud.

    The export of a checkpoint is kept in the assets' cache of huggingface_hub (`HF_ASSETS_CACHE`),
    until a file of the checkpoint or the toolkit changes.

    Raises:
        InputError: The folder is no checkpoint, or is damaged.
        GateError: The engine's outputs are not torch's.
    """
    if find_file(folder).is_file():
        return folder
    folder = folder.resolve()
    key = hashlib.sha256(f"{__version__} {folder}".encode())
    for file in sorted(folder.iterdir()):
        facts = file.stat()
        key.update(f" {file.name} {facts.st_size} {facts.st_mtime_ns}".encode())
    name = f"{folder.name}-{key.hexdigest()[:16]}"
    home = cached_assets_path("toolkit", namespace="exports", subfolder=name)
    kept = home / "export"
    if not (kept / "model.onnx").is_file():
        logger.warning("%s is a checkpoint: exporting it to %s, once", folder, kept)
        _export(folder, kept)
    return kept


def _export(checkpoint: Path, kept: Path) -> None:
    """Run `toolkit export` in a process of its own: its settings and threads are not the user's."""
    partial = Path(tempfile.mkdtemp(dir=kept.parent, prefix=".partial-"))
    try:
        paths = [f"checkpoint={quote(str(checkpoint))}", f"output_dir={quote(str(partial))}"]
        command = [sys.executable, "-m", "toolkit.cli", "export", *paths]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            sentence = (done.stderr.strip().splitlines() or ["no reason was given"])[-1]
            kinds = {code: errors[0] for errors, code in CODES.items()}
            kind = kinds.get(done.returncode, InputError)
            raise kind(f"cannot export {checkpoint}: {sentence.removeprefix('error: ')}")
        try:
            partial.rename(kept)
        except OSError:
            if not (kept / "model.onnx").is_file():  # another process was faster
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
