"""What `bench` measures side by side: engines, the precision of each, and the file it runs."""

from dataclasses import dataclass
from pathlib import Path

from toolkit.artifact.exported import Exported, read_exported
from toolkit.config import BenchRoot
from toolkit.engine.reader.sparse_file import SUFFIX
from toolkit.errors import UsageError, nearest
from toolkit.measure.engines import ENGINES, check_engine, is_installed
from toolkit.tasks import check_names
from toolkit.tasks.embedding import check_scored


@dataclass(frozen=True)
class Contender:
    """What is measured: an engine, the precision it is asked for, and perhaps a file of its own.

    Attributes:
        engine: A key of `ENGINES`.
        precision: One of the engine's `precisions`.
        onnx: The ONNX file or export folder that it runs; None: that of `bench`.
    """

    engine: str
    precision: str = "fp32"
    onnx: str | None = None

    @property
    def label(self) -> str:
        """`ENGINE`, `ENGINE:PRECISION`, `ENGINE@FILE` or both: as it is asked for and shown."""
        precision = "" if self.precision == "fp32" else f":{self.precision}"
        return self.engine + precision + ("" if self.onnx is None else f"@{self.onnx}")


def parse_contender(text: str) -> Contender:
    """Read `ENGINE[:PRECISION][@FILE]`, the inverse of `Contender.label`.

    Raises:
        UsageError: There is no such engine, or it has not the precision.
    """
    named, at, onnx = text.partition("@")
    engine, _, precision = named.partition(":")
    if engine not in ENGINES:
        raise UsageError(f"'{engine}' is no engine; {nearest(engine, ENGINES)}")
    if at and not onnx:
        raise UsageError(f"'{text}' must name an ONNX file or export folder behind @")
    contender = Contender(engine, precision or "fp32", onnx or None)
    known = ENGINES[engine].precisions
    if contender.precision not in known:
        raise UsageError(
            f"engine {engine} can be asked for precision {', '.join(known)}; "
            f"got {contender.precision!r}"
        )
    if at and ENGINES[engine].reads_checkpoint:
        raise UsageError(f"engine {engine} runs a checkpoint: it takes no file behind @")
    return contender


def engine_of(label: str) -> str:
    """Return the engine of a contender's label, which may be one that is not in `ENGINES`."""
    return label.partition("@")[0].partition(":")[0]


def precision_of(label: str) -> str:
    """Return the precision of a contender's label."""
    return label.partition("@")[0].partition(":")[2] or "fp32"


def check_options(config: BenchRoot) -> list[Contender]:
    """Refuse what cannot be measured here, before anything is; return what is measured.

    Raises:
        UsageError: A name is unknown, a package is missing, or options contradict each other.
    """
    first = Contender(config.engine.name, config.engine.precision).label
    contenders = [parse_contender(text) for text in dict.fromkeys([first, *config.against])]
    engines = [contender.engine for contender in contenders]
    for contender in contenders:
        check_engine(contender.engine)
        file = contender.onnx or config.onnx
        if file is not None and file.endswith(SUFFIX) and contender.engine != "sparse":
            raise UsageError(
                f"engine {contender.engine} reads ONNX, and {file} is for the sparse engine alone: "
                "name the model.onnx beside it"
            )
    check_names(config.task)
    if config.accuracy and config.task.kind == "embedding":
        check_scored(config.task)
    if config.onnx is None and not is_installed("torch"):
        raise UsageError(
            "measuring a model by its description builds it with torch, which is not installed: "
            f"name an ONNX file or export folder with onnx=…, or {ENGINES['torch'].remedy}"
        )
    for option in ("profile", "roofline"):
        if getattr(config, option) and "sparse" not in engines:
            raise UsageError(f"{option}=true shows the sparse engine: add engine=sparse")
    if config.roofline and not is_installed("matplotlib"):
        raise UsageError(
            "roofline=true draws with matplotlib, which is not installed: pip install matplotlib, "
            "or use profile=true for the numbers"
        )
    return contenders


def read_other(config: BenchRoot, model: Exported, contender: Contender) -> Exported:
    """Return what a contender runs: `model`, or what is in a file of its own.

    Raises:
        InputError: It is no ONNX file of a BERT.
        UsageError: It takes other texts than `model`.
    """
    if contender.onnx is None:
        return model
    other = read_exported(Path(contender.onnx))
    if other.vocab_size != model.vocab_size or other.max_tokens < config.seq_len:
        raise UsageError(
            f"{contender.label} must take the texts of the measured model: {model.vocab_size} "
            f"token ids, {config.seq_len} tokens; it has {other.vocab_size} and {other.max_tokens}"
        )
    return other
