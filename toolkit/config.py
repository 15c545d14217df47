"""The schema of every command: one dataclass per group of `conf/`, one root per verb.

YAML under `conf/` holds every value; these classes hold types, meanings and ranges. Hydra composes
and checks names and types, `__post_init__` checks ranges, and a root is turned into these plain
objects once, in `cli.py`. Nothing below it sees an OmegaConf container.
"""

from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from importlib.resources import files
from typing import Any, TypeVar, get_type_hints

Root = TypeVar("Root")

# Options of `train` that its weights do not depend on: a run may go on with others.
NOT_COMPARED = (
    "bench", "engine", "export", "min_accuracy", "output_dir", "published", "resume",
    "teacher.cache", "then",
)  # fmt: skip


class Weights(Enum):
    """Where a model's starting weights come from."""

    pretrained = "pretrained"
    random = "random"


class TeacherKind(Enum):
    """Whose logits the student learns from."""

    none = "none"
    dense = "dense"
    self = "self"


class Method(Enum):
    """What decides which weights are dropped.

    `magnitude`: the smallest (Zhu and Gupta 2017). `movement`: those that training moves towards
    zero, and `soft_movement`: those whose learnt score stays under a threshold (Sanh et al. 2020).
    `obert`: those whose loss, with the others adjusted, costs least to second order (Kurtic et al.
    2022). By texts alone: `wanda`, magnitude times the size of the input (Sun et al. 2023), and
    `sparsegpt`, which changes each layer's output least (Frantar and Alistarh 2023).
    """

    magnitude = "magnitude"
    movement = "movement"
    soft_movement = "soft_movement"
    obert = "obert"
    wanda = "wanda"
    sparsegpt = "sparsegpt"


# Which weights compete: those of one matrix, all of the encoder, or those of one output. Not
# written as a class, since `global` is a keyword.
Ranking = Enum("Ranking", {"uniform": "uniform", "global": "global", "row": "row"})


class Schedule(Enum):
    """How the sparsity rises.

    `cubic` fast at first, then ever slower; `linear`; `stepwise` in the steps given. `once`: all
    before training, from calibration texts. `locked`: it does not, the zeros of the starting
    weights stay (sparse transfer).
    """

    cubic = "cubic"
    linear = "linear"
    stepwise = "stepwise"
    once = "once"
    locked = "locked"


class Attention(Enum):
    """Which relation between tokens the student learns: attention maps, or that of values."""

    none = "none"
    maps = "maps"
    values = "values"


class EmbeddingLoss(Enum):
    """How far a vector is from the teacher's: 1 - cosine, or the relative squared error."""

    cosine = "cosine"
    mse = "mse"


class Pooling(Enum):
    """How a text's hidden states become one vector: their mean, or the first token's."""

    mean = "mean"
    cls = "cls"


class Calibration(Enum):
    """What of an input's numbers, seen on calibration texts, its 256 integers shall cover.

    `min_max` all of them; `percentile` all but the outermost; `entropy` the range whose rounded
    histogram has the least Kullback-Leibler divergence from the histogram (Migacz 2017); `mse` that
    with the least squared error of rounding and clipping.
    """

    min_max = "min_max"
    percentile = "percentile"
    entropy = "entropy"
    mse = "mse"


class Scenario(Enum):
    """`throughput` reports items per second first, `latency` one call's time."""

    throughput = "throughput"
    latency = "latency"


class Lengths(Enum):
    """`fixed`: every text has `seq_len` tokens. `task`: real texts with their real lengths."""

    fixed = "fixed"
    task = "task"


class Format(Enum):
    """What an export folder holds: `model.onnx`; for `sparse` also `model.sparse`, the same model
    without its zeros, which only our engine reads."""

    onnx = "onnx"
    sparse = "sparse"


class Values(Enum):
    """What float32 weights are stored as in `model.sparse`: exactly, or in half precision."""

    fp32 = "fp32"
    fp16 = "fp16"


class Verb(Enum):
    """The verbs that `train then=[…]` may go on with."""

    export = "export"
    bench = "bench"


@dataclass(kw_only=True)
class ModelConfig:
    """Architecture and starting weights.

    Attributes:
        name: Short name used in records and reports.
        path: Hub id or local folder of a Hugging Face checkpoint; null when there is none.
        weights: `pretrained` loads `path`; `random` builds the architecture with new weights.
        config: Keyword arguments of the transformers configuration (with `model_type`), used by
            `weights=random`; empty means: take the configuration found at `path`.
        freeze_embeddings: Whether the embeddings (words, positions, types, their LayerNorm) stay
            as they are while the rest is trained.
    """

    name: str
    path: str | None
    weights: Weights
    config: dict[str, Any]
    freeze_embeddings: bool


@dataclass(kw_only=True)
class DepthConfig:
    """Encoder layers that are kept.

    Attributes:
        name: Short name used in records and reports.
        num_layers: How many layers to keep, evenly spaced with first and last among them; null
            keeps all.
        keep: Explicit 0-based layer numbers, ascending; overrides `num_layers`.
        drop: The same of those that go, whatever number the model has; overrides `num_layers`.
    """

    name: str
    num_layers: int | None
    keep: list[int] | None
    drop: list[int] | None

    def __post_init__(self) -> None:
        if self.num_layers is not None:
            _check_at_least("depth.num_layers", self.num_layers, 1)
        for field in ("keep", "drop"):
            layers = getattr(self, field)
            if layers is not None and (
                not layers or sorted(set(layers)) != list(layers) or layers[0] < 0
            ):
                raise ValueError(
                    f"depth.{field} must list distinct layer numbers in ascending order, "
                    f"such as [0,6,11]; got {list(layers)}"
                )
        if self.keep is not None and self.drop is not None:
            raise ValueError("depth.keep and depth.drop are two ways to say the same: set one")


@dataclass(kw_only=True)
class MovementOptions:
    """Movement pruning, whose scores are learnt: `method` = movement or soft_movement.

    Attributes:
        learning_rate: Of the scores, > 0; it follows the schedule of the weights'.
        magnitude: Scores begin at so much times |W| over the standard deviation of W; 0: all at 0.
        threshold: soft_movement: weights whose sigmoid of the score is not above it are dropped;
            in (0, 1), reached as the schedule reaches the final sparsity.
        regularization: soft_movement: weight in the loss of the scores' mean sigmoid,
            growing with the threshold, >= 0; the larger, the sparser.
    """

    learning_rate: float
    magnitude: float
    threshold: float
    regularization: float

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(
                f"sparsity.movement.learning_rate must be > 0; got {self.learning_rate}"
            )
        _check_at_least("sparsity.movement.magnitude", self.magnitude, 0)
        if not 0.0 < self.threshold < 1.0:
            raise ValueError(f"sparsity.movement.threshold must be in (0, 1); got {self.threshold}")
        _check_at_least("sparsity.movement.regularization", self.regularization, 0)


@dataclass(kw_only=True)
class FisherOptions:
    """Second-order pruning, `method` = obert: the empirical Fisher matrix, block by block.

    Attributes:
        block: Consecutive weights of one block, >= 1.
        num_gradients: Gradients that a matrix is estimated from, >= 1.
        batch_size: Examples of each gradient, >= 1.
        damping: Added to the diagonal, > 0.
        recomputations: Times that the matrix is estimated anew on the way from one sparsity of
            the schedule to the next, >= 1.
        memory_gib: Most memory for matrices and gradients, in GiB, > 0. With less than all
            weights need, they are taken in several passes over the same examples.
    """

    block: int
    num_gradients: int
    batch_size: int
    damping: float
    recomputations: int
    memory_gib: float

    def __post_init__(self) -> None:
        for field in ("block", "num_gradients", "batch_size", "recomputations"):
            _check_at_least(f"sparsity.fisher.{field}", getattr(self, field), 1)
        for field in ("damping", "memory_gib"):
            if getattr(self, field) <= 0:
                raise ValueError(f"sparsity.fisher.{field} must be > 0; got {getattr(self, field)}")


@dataclass(kw_only=True)
class SparsityConfig:
    """Pruning of the encoder: of single weights, by which rule, in which pattern, and when; before
    it, of whole heads and neurons.

    Attributes:
        name: Short name used in records and reports.
        method: What a weight is worth; see `Method`.
        ranking: Which weights compete for a place; see `Ranking`.
        schedule: How the sparsity gets from `initial_sparsity` to `final_sparsity`; see
            `Schedule`.
        steps: The sparsities of `schedule=stepwise`, ascending, in [0, 1): the first from
            `start_epoch`, the last from `end_epoch` on, the others evenly spaced between.
        initial_sparsity: Fraction of zeros at `start_epoch`, in [0, 1); null starts with the zeros
            that the weights already have.
        final_sparsity: Fraction of zeros from `end_epoch` on, in [0, 1); 0 prunes nothing.
        layer_sparsity: The final sparsity of each kept encoder layer, first to last, instead of
            one for all.
        parts: Final sparsities of linear layers by name or pattern, such as `layers.0.*` or
            `*.query`, of which the first that fits counts, instead of `final_sparsity`; 0 leaves
            them dense.
        start_epoch: Epoch at which pruning starts, >= 0.
        end_epoch: Epoch at which the final sparsity is reached, >= `start_epoch`; a run shorter
            than this is refused.
        update_frequency: Epochs between two mask updates, > 0.
        block_shape: [rows, columns] of the blocks that are kept or dropped together; [1, 1] is
            unstructured, [1, 4] four consecutive weights along the input dimension.
        n_of_m: [n, m] keeps at least n of every m consecutive weights along the input dimension,
            exactly n at a final sparsity of 1 - n / m; null does not.
        rewind: At each mask update the learning rate is set back to its start and then falls
            linearly to this fraction of it until the next, in (0, 1]; null leaves it to the
            Trainer.
        floor: What every evaluation shall fulfil, such as `accuracy>=86` (percent); see
            `toolkit.compress.sparsity.floor`. Null sets none.
        num_calibration: Training examples that wanda and sparsegpt look at for each mask update,
            and structured pruning, >= 1 (obert looks at those of `fisher`).
        movement: Of `method=movement` and `soft_movement`.
        fisher: Of `method=obert`.
        target_speedup: Structured pruning: heads and neurons are removed until the engine runs the
            model so many times as fast as it does after `depth`, > 1; null removes none.
        target_latency_ms: The same, until a call takes so long, > 0; one of the two at most.
        target_steps: Steps of equal factor in which `target_speedup` is reached, >= 1, each
            followed by an equal share of the training.
    """

    name: str
    method: Method
    ranking: Ranking
    schedule: Schedule
    steps: list[float] | None
    initial_sparsity: float | None
    final_sparsity: float
    layer_sparsity: list[float] | None
    parts: dict[str, float] | None
    start_epoch: float
    end_epoch: float
    update_frequency: float
    block_shape: list[int]
    n_of_m: list[int] | None
    rewind: float | None
    floor: str | None
    num_calibration: int
    movement: MovementOptions
    fisher: FisherOptions
    target_speedup: float | None
    target_latency_ms: float | None
    target_steps: int

    def __post_init__(self) -> None:
        for value in (self.initial_sparsity or 0.0, self.final_sparsity):
            if not 0.0 <= value < 1.0:
                field = "final" if value == self.final_sparsity else "initial"
                raise ValueError(f"sparsity.{field}_sparsity must be in [0, 1); got {value}")
        if self.final_sparsity > 0 and (self.initial_sparsity or 0.0) > self.final_sparsity:
            raise ValueError(
                "sparsity.initial_sparsity must not exceed sparsity.final_sparsity "
                f"({self.final_sparsity}); got {self.initial_sparsity}"
            )
        _check_at_least("sparsity.start_epoch", self.start_epoch, 0)
        _check_at_least("sparsity.end_epoch", self.end_epoch, self.start_epoch)
        if self.update_frequency <= 0:
            raise ValueError(
                f"sparsity.update_frequency must be > 0 epochs; got {self.update_frequency}"
            )
        if self.rewind is not None and not 0.0 < self.rewind <= 1.0:
            raise ValueError(f"sparsity.rewind must be in (0, 1]; got {self.rewind}")
        _check_at_least("sparsity.num_calibration", self.num_calibration, 1)
        self._check_pattern()
        self._check_combination()
        self._check_structured()

    def _check_pattern(self) -> None:
        if len(self.block_shape) != 2 or min(self.block_shape) < 1:
            raise ValueError(
                "sparsity.block_shape must be [rows, columns], both >= 1, such as [1,4]; "
                f"got {list(self.block_shape)}"
            )
        for name in ("steps", "layer_sparsity"):
            values = getattr(self, name)
            if values is not None and (not values or not all(0.0 <= v < 1.0 for v in values)):
                raise ValueError(f"sparsity.{name} must list numbers in [0, 1); got {values}")
        if self.parts is not None and not all(0.0 <= v < 1.0 for v in self.parts.values()):
            raise ValueError(f"sparsity.parts must have numbers in [0, 1); got {dict(self.parts)}")
        if self.n_of_m is None:
            return
        if len(self.n_of_m) != 2 or not 1 <= self.n_of_m[0] <= self.n_of_m[1]:
            raise ValueError(
                f"sparsity.n_of_m must be [n, m] with 1 <= n <= m, such as [2,4]; got {self.n_of_m}"
            )
        n, m = self.n_of_m
        if self.final_sparsity > 0 and abs(self.final_sparsity - (1 - n / m)) > 1e-6:
            raise ValueError(
                f"sparsity.n_of_m=[{n},{m}] means sparsity.final_sparsity={1 - n / m:g}; "
                f"got {self.final_sparsity}"
            )
        if list(self.block_shape) != [1, 1] or self.ranking is not Ranking["uniform"]:
            raise ValueError(
                "sparsity.n_of_m ranks single weights among m neighbours: it goes with "
                "sparsity.block_shape=[1,1] and sparsity.ranking=uniform"
            )

    def _check_combination(self) -> None:
        if self.schedule is Schedule.stepwise:
            if not self.steps or sorted(self.steps) != list(self.steps):
                raise ValueError(
                    "sparsity.schedule=stepwise needs sparsity.steps in ascending order, such as "
                    f"[0.7,0.8,0.9]; got {self.steps}"
                )
            if self.steps[-1] != self.final_sparsity:
                raise ValueError(
                    f"the last of sparsity.steps must be sparsity.final_sparsity="
                    f"{self.final_sparsity}; got {self.steps[-1]}"
                )
        elif self.steps is not None:
            raise ValueError("sparsity.steps belongs to sparsity.schedule=stepwise")
        learnt = self.method in (Method.movement, Method.soft_movement)
        one_by_one = self.method in (Method.wanda, Method.sparsegpt)
        if one_by_one and self.ranking is Ranking["global"]:
            raise ValueError(
                f"sparsity.method={self.method.value} prunes one layer at a time, which then "
                "cannot compete: use sparsity.ranking=uniform or row"
            )
        if learnt and self.schedule in (Schedule.once, Schedule.locked):
            raise ValueError(
                f"sparsity.method={self.method.value} learns its scores while training: "
                f"sparsity.schedule={self.schedule.value} gives it no time to"
            )
        if self.layer_sparsity is not None and self.ranking is Ranking["global"]:
            raise ValueError(
                "sparsity.layer_sparsity says what each layer keeps, sparsity.ranking=global lets "
                "the layers compete: choose one"
            )
        if self.parts is not None:
            self._check_parts()

    def _check_parts(self) -> None:
        assert self.parts is not None
        least = self.initial_sparsity or 0.0
        if self.final_sparsity == 0 or any(0 < v < least for v in self.parts.values()):
            raise ValueError(
                "sparsity.parts are exceptions from sparsity.final_sparsity, which must be above "
                f"0, and start with sparsity.initial_sparsity ({least:g}); got "
                f"{self.final_sparsity:g} and {dict(self.parts)}"
            )
        if self.layer_sparsity is not None or self.ranking is Ranking["global"]:
            raise ValueError(
                "sparsity.parts says what each part keeps: it goes with neither "
                "sparsity.layer_sparsity nor sparsity.ranking=global"
            )
        if self.method is Method.soft_movement or self.schedule in (
            Schedule.locked,
            Schedule.stepwise,
        ):
            raise ValueError(
                "sparsity.parts sets final sparsities, which sparsity.method=soft_movement and "
                "sparsity.schedule=locked do not have, and stepwise lists one by one"
            )
        if self.n_of_m is not None and not {*self.parts.values()} <= {0.0, self.final_sparsity}:
            raise ValueError(
                f"sparsity.n_of_m has one sparsity, {self.final_sparsity:g}: sparsity.parts may "
                "leave layers dense beside it"
            )

    def _check_structured(self) -> None:
        if self.name == "structured" and not self.is_structured:
            raise ValueError(
                "sparsity=structured needs a target: sparsity.target_speedup=3, or "
                "sparsity.target_latency_ms=5"
            )
        if self.target_speedup is not None and self.target_latency_ms is not None:
            raise ValueError(
                "sparsity.target_speedup and sparsity.target_latency_ms are two ways to say the "
                "same: set one of them"
            )
        if self.target_speedup is not None and self.target_speedup <= 1:
            raise ValueError(f"sparsity.target_speedup must be > 1; got {self.target_speedup}")
        if self.target_latency_ms is not None and self.target_latency_ms <= 0:
            raise ValueError(
                f"sparsity.target_latency_ms must be > 0; got {self.target_latency_ms}"
            )
        _check_at_least("sparsity.target_steps", self.target_steps, 1)
        if self.target_steps > 1 and self.target_speedup is None:
            found = self.target_latency_ms
            raise ValueError(
                f"sparsity.target_steps={self.target_steps} divides sparsity.target_speedup; got "
                + ("no target" if found is None else f"sparsity.target_latency_ms={found:g}")
                + ": ask for a factor, such as sparsity.target_speedup=4"
            )

    @property
    def is_on(self) -> bool:
        """Whether weights are pruned, or zeros of the starting weights kept."""
        return self.final_sparsity > 0 or self.schedule is Schedule.locked

    @property
    def is_structured(self) -> bool:
        """Whether heads and neurons are removed."""
        return self.target_speedup is not None or self.target_latency_ms is not None


@dataclass(kw_only=True)
class TeacherConfig:
    """Knowledge distillation.

    Attributes:
        name: Short name used in records and reports.
        kind: `none`; `dense`: the fine-tuned checkpoint at `path`; `self`: the student's own
            weights as they are before layers are dropped and training starts.
        path: Folder of the fine-tuned checkpoint, with `kind=dense`.
        hardness: Weight of the teacher term in the loss, in [0, 1]; 1 ignores the labels.
        temperature: Softmax temperature of both sides, > 0.
        cache: Folder that keeps the teacher's logits for the training data, shared by all runs of
            the same teacher and data; null computes them in every run.
        hidden_weight: Weight of the hidden states' relative squared error, >= 0.
        attention: Whether attention maps or value relations are compared.
        attention_weight: Weight of their divergence, >= 0; counts unless `attention=none`.
        embedding_loss: What `task=embedding` compares vectors by, instead of logits.
        layer_map: The teacher's layer, from 0, that each of the student's is compared with; null
            finds it: a dropped layer's teacher is dropped, too.
    """

    name: str
    kind: TeacherKind
    path: str | None
    hardness: float
    temperature: float
    cache: str | None
    hidden_weight: float
    attention: Attention
    attention_weight: float
    embedding_loss: EmbeddingLoss
    layer_map: list[int] | None

    def __post_init__(self) -> None:
        _check_at_least("teacher.hidden_weight", self.hidden_weight, 0)
        _check_at_least("teacher.attention_weight", self.attention_weight, 0)
        if self.layer_map is not None and (not self.layer_map or min(self.layer_map) < 0):
            raise ValueError(
                "teacher.layer_map must list one layer of the teacher, from 0, per layer of the "
                f"student, such as [1,3,5]; got {list(self.layer_map)}"
            )
        if not 0.0 <= self.hardness <= 1.0:
            raise ValueError(f"teacher.hardness must be in [0, 1]; got {self.hardness}")
        if self.temperature <= 0:
            raise ValueError(f"teacher.temperature must be > 0; got {self.temperature}")
        if self.kind is TeacherKind.dense and self.path is None:
            raise ValueError(
                "teacher=dense needs teacher.path=DIR, the folder of a fine-tuned checkpoint"
            )


@dataclass(kw_only=True)
class QuantizationConfig:
    """INT8 for the encoder's linear layers: learnt by `train`, or calibrated by `export`.

    Attributes:
        name: Short name used in records and reports.
        bits: Of weights and inputs: 8; null keeps float32.
        keep_float: Layers that stay in float32, by names or patterns such as `layers.0.*` and
            `*.output`.
        embeddings: Export: whether a model with INT8 layers has its word embeddings in INT8, too,
            with a scale per word: a quarter of the bytes, for next to no loss.
        start_epoch: Training: epoch from which weights and inputs are rounded, >= 0; null is the
            last quarter.
        freeze_epoch: Training: epoch at which the inputs' ranges are calibrated for the last time,
            at least `start_epoch`, where they are for the first; null is halfway from there to the
            end.
        learning_rate: Training: to which it is set back at `start_epoch`, > 0, to fall linearly
            from there; null is the Trainer's.
        final_learning_rate: Training: where it ends, >= 0.
        calibration: How the inputs' ranges are chosen; see `Calibration`.
        percentile: Of `calibration=percentile`, in (50, 100]: so many percent of an input's
            numbers lie below its range's upper end, and as many above its lower end.
        num_calibration_examples: Training examples that are looked at, >= 1.
        smooth: Export: how much of the inputs' outliers goes over to the weights, in [0, 1];
            null leaves them.
        num_sensitivity_examples: Export: of these, how many the sensitivity of each layer is
            measured on, >= 0; 0 leaves that out.
        max_loss: Export: layers are put back to float32, the most sensitive first, until the
            task's main metric has lost at most so many points, >= 0; null puts none back.
    """

    name: str
    bits: int | None
    keep_float: list[str]
    embeddings: bool
    start_epoch: float | None
    freeze_epoch: float | None
    learning_rate: float | None
    final_learning_rate: float
    calibration: Calibration
    percentile: float
    num_calibration_examples: int
    smooth: float | None
    num_sensitivity_examples: int
    max_loss: float | None

    def __post_init__(self) -> None:
        if self.bits not in (None, 8):
            raise ValueError(f"quantization.bits must be 8, or null for float32; got {self.bits}")
        _check_at_least("quantization.start_epoch", self.start_epoch or 0.0, 0)
        if self.freeze_epoch is not None:
            least = self.start_epoch or 0.0
            _check_at_least("quantization.freeze_epoch", self.freeze_epoch, least)
        if self.learning_rate is not None and self.learning_rate <= 0:
            raise ValueError(f"quantization.learning_rate must be > 0; got {self.learning_rate}")
        _check_at_least("quantization.final_learning_rate", self.final_learning_rate, 0)
        if not 50.0 < self.percentile <= 100.0:
            raise ValueError(f"quantization.percentile must be in (50, 100]; got {self.percentile}")
        _check_at_least("quantization.num_calibration_examples", self.num_calibration_examples, 1)
        if self.smooth is not None and not 0.0 <= self.smooth <= 1.0:
            raise ValueError(f"quantization.smooth must be in [0, 1]; got {self.smooth}")
        _check_at_least("quantization.num_sensitivity_examples", self.num_sensitivity_examples, 0)
        if self.max_loss is not None:
            _check_at_least("quantization.max_loss", self.max_loss, 0)
            if self.num_sensitivity_examples == 0:
                raise ValueError(
                    "quantization.max_loss puts the most sensitive layers back to float32: it "
                    "needs quantization.num_sensitivity_examples above 0"
                )

    @property
    def is_on(self) -> bool:
        """Whether anything is quantized."""
        return self.bits is not None


@dataclass(kw_only=True)
class TaskConfig:
    """Data, columns and metrics.

    Attributes:
        name: Short name used in records and reports.
        kind: What is predicted: a module of `toolkit.tasks`.
        path: Hub data set id (`[id, configuration]` for a collection); null for generated data.
        data_dir: Folder of local files that replaces the hub data set.
        train_file: A file of one's own to learn from: CSV, TSV, JSON lines or Parquet by its
            suffix; each kind says what else it reads.
        eval_file: One to be judged by; null holds some of `train_file` back.
        text_columns: Columns of the text, or of the pair of texts, in one's own files; null takes
            `file_columns`.
        label_column: Column of the label there; a pair's score for embedding.
        header: Names of a file's columns where its first line does not tell them.
        skip_broken_rows: Whether rows with another number of fields than the header are left out,
            and counted aloud, instead of refused.
        splits: The hub data set's names of `train` and `eval`.
        files: Names of their files below `data_dir`.
        columns: The hub data set's columns of what the kind reads (`text`, `text_pair`, `label`).
        file_columns: The same of the files.
        label_names: The labels in the order of their numbers; files may have these or the numbers.
            Null, and `num_labels` null: those that the training data have, in alphabetical order,
            numbers in theirs.
        multi_label: Whether a text has any number of labels (text_classification).
        label_separator: What stands between them where they are one text, such as `a|b`.
        threshold: Probability from which on such a label counts as predicted, in (0, 1).
        class_weights: How much the loss of each label weighs: a list in the order of the labels,
            or `balanced`, the more the rarer; null weighs all alike.
        has_unanswerable: Whether questions may have no answer, as in SQuAD v2.
        no_answer_threshold: By how much the logits of no answer must exceed those of the best
            answer for none to be given.
        pooling: How an embedding is made of a text's hidden states; null for other kinds.
        metrics: By which the model is judged, the main one first; each kind of task has its own.
        num_labels: Labels of a classification task; 2 for the span start and end of question
            answering, 1 for regression. Null counts `label_names`, or the data's.
        max_length: Tokens of one input, special tokens included.
        doc_stride: Tokens shared by two windows of a long context (question answering).
        max_train_samples: Use only the first N training examples; null uses all.
        max_eval_samples: Use only the first N evaluation examples; null uses all.
    """

    name: str
    kind: str
    path: list[str] | None
    data_dir: str | None
    train_file: str | None
    eval_file: str | None
    text_columns: list[str] | None
    label_column: str | None
    header: list[str] | None
    skip_broken_rows: bool
    splits: dict[str, str]
    files: dict[str, str]
    columns: dict[str, str | None]
    file_columns: dict[str, str | None]
    label_names: list[str] | None
    multi_label: bool
    label_separator: str
    threshold: float
    class_weights: Any
    has_unanswerable: bool
    no_answer_threshold: float
    pooling: Pooling | None
    metrics: list[str]
    num_labels: int | None
    max_length: int
    doc_stride: int
    max_train_samples: int | None
    max_eval_samples: int | None

    def __post_init__(self) -> None:
        _check_at_least("task.max_length", self.max_length, 8)
        _check_at_least("task.doc_stride", self.doc_stride, 0)
        if not self.metrics:
            raise ValueError("task.metrics must name at least one metric; got none")
        if self.label_names is not None and self.num_labels is None:
            self.num_labels = len(self.label_names)
        if self.label_names is not None and len(self.label_names) != self.num_labels:
            raise ValueError(
                f"task.label_names must name task.num_labels={self.num_labels} labels; "
                f"got {len(self.label_names)}"
            )
        if not 0.0 < self.threshold < 1.0:
            raise ValueError(f"task.threshold must be in (0, 1); got {self.threshold}")
        if not self.label_separator:
            raise ValueError("task.label_separator must be at least one character; got none")
        self._check_columns()
        weights = self.class_weights
        if isinstance(weights, list):
            is_right = all(isinstance(w, (int, float)) and w >= 0 for w in weights) and any(weights)
        else:
            is_right = weights in (None, "balanced")
        if not is_right:
            raise ValueError(
                "task.class_weights must be balanced, null, or a list of numbers >= 0, one per "
                f"label, such as [1,2.5]; got {weights}"
            )
        for field in ("max_train_samples", "max_eval_samples"):
            if getattr(self, field) is not None:
                _check_at_least(f"task.{field}", getattr(self, field), 1)

    def _check_columns(self) -> None:
        for field in ("text_columns", "label_names", "metrics", "header"):
            values = getattr(self, field) or []
            if len(set(values)) < len(values):
                raise ValueError(f"task.{field} must not name anything twice; got {list(values)}")
        texts = self.text_columns
        if texts is not None and not 1 <= len(texts) <= 2:
            raise ValueError(
                "task.text_columns must name one column, or two for pairs, such as [sentence]; "
                f"got {list(texts)}"
            )
        if texts is not None and self.label_column in texts:
            raise ValueError(
                f"task.label_column={self.label_column} is among task.text_columns={list(texts)}: "
                "the label would be read off the text"
            )
        if self.data_dir is not None and (self.train_file or self.eval_file):
            raise ValueError(
                "task.data_dir names a folder with files of known names, task.train_file and "
                "task.eval_file name files of your own: give one of the two"
            )


class RateShape(Enum):
    """How the learning rate gets from one value to another."""

    linear = "linear"
    cosine = "cosine"


@dataclass(kw_only=True)
class RateRange:
    """The learning rate between two epochs, as fractions of `trainer.learning_rate`.

    Attributes:
        start_epoch: Where it begins, >= 0.
        end_epoch: Where it ends, above `start_epoch`.
        first: The fraction at its start, >= 0.
        last: At its end, and until another range begins, >= 0.
        shape: On the way.
    """

    start_epoch: float
    end_epoch: float
    first: float
    last: float
    shape: RateShape

    def __post_init__(self) -> None:
        _check_at_least("rates.start_epoch", self.start_epoch, 0)
        if self.end_epoch <= self.start_epoch:
            raise ValueError(
                f"rates.end_epoch must be above its start_epoch={self.start_epoch:g}; got "
                f"{self.end_epoch:g}"
            )
        _check_at_least("rates.first", self.first, 0)
        _check_at_least("rates.last", self.last, 0)


ISAS = (
    *("amx_bf16", "avx512_fp16", "avx512_bf16", "avx512_vnni", "avx512", "avx_vnni", "avx2"),
    *("neon_fp16", "neon_dot", "neon", "generic"),
)
PRECISIONS = ("fp32", "bf16", "fp16", "auto")


@dataclass(kw_only=True)
class EngineConfig:
    """What runs the model.

    Attributes:
        name: The engine: a key of `toolkit.measure.engines.ENGINES`.
        num_threads: Worker threads; 0 decides from affinity and cgroup quota.
        isa: Instruction set of the sparse engine: auto, or one of `ISAS`.
        kernel: Form in which it runs every weight: dense, table, generated; auto times them on
            weights like the model's and takes the fastest. All give the same bits in float32.
        precision: What a float32 graph is computed in: fp32; bf16, fp16: products of 16 bits where
            that is faster, sums in float32; auto: the fastest of those that this CPU has.
    """

    name: str
    num_threads: int
    isa: str
    kernel: str
    precision: str

    def __post_init__(self) -> None:
        _check_at_least("engine.num_threads", self.num_threads, 0)
        if self.isa not in ("auto", *ISAS):
            raise ValueError(f"engine.isa must be auto, {', '.join(ISAS)}; got {self.isa!r}")
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"engine.precision must be one of {', '.join(PRECISIONS)}; got {self.precision!r}"
            )
        if self.kernel not in ("auto", "dense", "table", "generated"):
            raise ValueError(
                f"engine.kernel must be auto, dense, table or generated; got {self.kernel!r}"
            )


@dataclass(kw_only=True)
class ExportConfig:
    """ONNX export.

    Attributes:
        atol: Largest absolute difference of any output to torch's that passes as equal.
        num_parity_examples: Real inputs compared.
        format: What is written; see `Format`.
        values: Of `format=sparse`; see `Values`.
    """

    atol: float
    num_parity_examples: int
    format: Format
    values: Values

    def __post_init__(self) -> None:
        if self.atol <= 0:
            raise ValueError(f"export.atol must be > 0; got {self.atol}")
        _check_at_least("export.num_parity_examples", self.num_parity_examples, 1)


@dataclass(kw_only=True)
class BenchConfig:
    """How a model is measured.

    Attributes:
        against: Further engines, measured in the same interleaved run: `ENGINE[:PRECISION][@FILE]`,
            FILE an ONNX file or export folder that this engine runs instead.
        batch_size: Texts per call.
        seq_len: Tokens per text with `lengths=fixed`; the upper bound with `lengths=task`.
        seconds: Measured time per engine.
        min_iterations: Calls per engine, at least.
        scenario: What the table leads with.
        lengths: Fixed or real lengths.
        accuracy: Also compute the task's metric through each engine.
        profile: Also report time per fused operation of the sparse engine.
        roofline: Also measure the machine's peaks and draw where those operations stand, as
            `roofline.png` in the run's folder; needs matplotlib.
        baseline: An earlier `record.json` to compare with.
        max_regression: Largest fraction by which items/s may fall below the baseline's.
    """

    against: list[str]
    batch_size: int
    seq_len: int
    seconds: float
    min_iterations: int
    scenario: Scenario
    lengths: Lengths
    accuracy: bool
    profile: bool
    roofline: bool
    baseline: str | None
    max_regression: float

    def __post_init__(self) -> None:
        _check_at_least("batch_size", self.batch_size, 1)
        _check_at_least("seq_len", self.seq_len, 3)
        _check_at_least("seconds", self.seconds, 0)
        _check_at_least("min_iterations", self.min_iterations, 1)
        if not 0.0 <= self.max_regression < 1.0:
            raise ValueError(f"max_regression must be in [0, 1); got {self.max_regression}")


@dataclass(kw_only=True)
class ServeConfig:
    """The server: where it listens, how it gathers batches, what it refuses.

    Attributes:
        host: Address to listen on; 0.0.0.0 is every network interface.
        port: Port to listen on; 0 lets the system choose a free one.
        token: What every request must carry as `Authorization: Bearer TOKEN`, apart from those for
            health and for the page; null asks for nothing.
        model_name: The model's name in answers and in the paths of /v2; null takes the record's,
            or the folder's.
        pooling: How an embedding is made of a text's hidden states; null does as the export says.
        max_batch: Texts that the engine runs at once, >= 1.
        max_wait_ms: Longest time that a text waits for others to fill a batch, while the engine
            has nothing to do, >= 0.
        max_batch_tokens: Tokens that the engine runs at once, >= 1; one longer text runs alone.
        max_queue: Texts that may wait for the engine, >= `max_texts`; more are refused (429).
        max_texts: Texts of one request, >= 1; more are refused (413).
        max_body_bytes: Bytes of one request, >= 1; more are refused (413).
        auto_truncate: Whether texts that are too long are cut where a request does not say;
            otherwise they are refused (413).
        read_timeout_s: Seconds that a client has to send its request, > 0.
        shutdown_timeout_s: Seconds that requests have to finish once the server shall stop, > 0.
    """

    host: str
    port: int
    token: str | None
    model_name: str | None
    pooling: Pooling | None
    max_batch: int
    max_wait_ms: float
    max_batch_tokens: int
    max_queue: int
    max_texts: int
    max_body_bytes: int
    auto_truncate: bool
    read_timeout_s: float
    shutdown_timeout_s: float

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise ValueError(f"serve.port must be in [0, 65535]; got {self.port}")
        token = self.token
        if token is not None and not (token and token.isascii() and token.isprintable()):
            raise ValueError(
                "serve.token must be printable ASCII characters, at least one, or null"
            )
        for field in ("max_batch", "max_batch_tokens", "max_texts", "max_body_bytes"):
            _check_at_least(f"serve.{field}", getattr(self, field), 1)
        _check_at_least("serve.max_wait_ms", self.max_wait_ms, 0)
        if self.max_queue < self.max_texts:
            raise ValueError(
                f"serve.max_queue must be at least serve.max_texts={self.max_texts}, or a request "
                f"of that many texts never fits; got {self.max_queue}"
            )
        for field in ("read_timeout_s", "shutdown_timeout_s"):
            if getattr(self, field) <= 0:
                raise ValueError(f"serve.{field} must be > 0; got {getattr(self, field)}")


@dataclass(kw_only=True)
class TrainRoot:
    """`toolkit train`: compose, train, evaluate, save.

    Attributes:
        trainer: Keyword arguments of `transformers.TrainingArguments`.
        then: Verbs that continue on the fresh checkpoint in the same run directory.
        resume: Continue an interrupted run, or sweep, of the same `output_dir`.
        num_processes: Processes on this machine that train together, one for each GPU (on CPUs with
            `trainer.ddp_backend=gloo`), >= 1. A step then takes as many batches.
        min_accuracy: Accuracy floor in percent for the task's main metric; below it the run
            ends with exit code 3. Null sets no floor.
        rates: The learning rate over time, range by range in ascending order, instead of the
            Trainer's schedule; before the first it is `trainer.learning_rate`. Null leaves it to
            `trainer`, `sparsity.rewind` and `quantization`.
        published: What others published for this recipe, in percent by metric; null where they
            say nothing.
    """

    model: ModelConfig
    depth: DepthConfig
    sparsity: SparsityConfig
    teacher: TeacherConfig
    quantization: QuantizationConfig
    task: TaskConfig
    trainer: dict[str, Any]
    engine: EngineConfig
    export: ExportConfig
    bench: BenchConfig
    then: list[Verb]
    resume: bool
    num_processes: int
    min_accuracy: float | None
    rates: list[RateRange] | None
    published: dict[str, float | None]
    seed: int
    output_dir: str

    def __post_init__(self) -> None:
        _check_at_least("num_processes", self.num_processes, 1)


@dataclass(kw_only=True)
class ExportRoot:
    """`toolkit export`: checkpoint → ONNX, with parity proven.

    Attributes:
        checkpoint: Folder written by `train`; null exports `model`, `depth` and `sparsity` with
            untrained weights pruned at once (the what-if model of `bench`).
        resume: Continue an interrupted sweep of the same `output_dir`; for sweeps (`-m`) only.
    """

    checkpoint: str | None
    model: ModelConfig
    depth: DepthConfig
    sparsity: SparsityConfig
    quantization: QuantizationConfig
    task: TaskConfig
    engine: EngineConfig
    export: ExportConfig
    resume: bool
    seed: int
    output_dir: str | None


@dataclass(kw_only=True)
class BenchRoot(BenchConfig):
    """`toolkit bench`: measure engines side by side.

    Attributes:
        onnx: ONNX file, or export folder; null measures what `model`, `depth` and `sparsity`
            describe, with random weights.
        resume: Continue an interrupted sweep of the same `output_dir`; for sweeps (`-m`) only.
    """

    onnx: str | None
    model: ModelConfig
    depth: DepthConfig
    sparsity: SparsityConfig
    quantization: QuantizationConfig
    task: TaskConfig
    engine: EngineConfig
    export: ExportConfig
    resume: bool
    seed: int
    output_dir: str


@dataclass(kw_only=True)
class GridRoot:
    """`toolkit grid`: how fast models of several depths, sparsities and precisions are.

    Attributes:
        depths: Numbers of encoder layers; null measures all of the model's, half and a quarter.
        sparsities: Fractions of zeros in the encoder, in [0, 1).
        precisions: `int8`, and those of `engine.precision`; null measures what this CPU has.
        blocks: By precision the [rows, columns] of the blocks that are zero together, where that is
            not [1, 1].
        batch_size: Texts per call.
        seq_len: Tokens per text.
        rounds: Times that all cells are measured in turn.
    """

    model: ModelConfig
    engine: EngineConfig
    depths: list[int] | None
    sparsities: list[float]
    precisions: list[str] | None
    blocks: dict[str, list[int]]
    batch_size: int
    seq_len: int
    rounds: int
    seed: int
    output_dir: str

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("seq_len", 3), ("rounds", 1)):
            _check_at_least(name, getattr(self, name), least)
        if not self.sparsities or not all(0.0 <= value < 1.0 for value in self.sparsities):
            raise ValueError(f"sparsities must list numbers in [0, 1); got {self.sparsities}")
        if self.depths is not None and (not self.depths or min(self.depths) < 1):
            raise ValueError(f"depths must list numbers of layers from 1; got {self.depths}")
        known = (*PRECISIONS, "int8")
        for name in (*(self.precisions or ()), *self.blocks):
            if name not in known:
                raise ValueError(f"precisions must be among {', '.join(known)}; got {name!r}")
        for name, shape in self.blocks.items():
            if len(shape) != 2 or min(shape) < 1:
                raise ValueError(
                    f"blocks.{name} must be [rows, columns], both >= 1, such as [1,4]; got {shape}"
                )


@dataclass(kw_only=True)
class ReportRoot:
    """`toolkit report PATHS…`: records → report.

    Attributes:
        paths: Folders or files below which every `record.json` is collected.
        select: Conditions such as `f1>=87,latency_p99_ms<=10`; the fastest run that meets all
            is named.
        within: Share of the teacher's score, or the dense model's, that the run may lose which the
            report names first, in [0, 1).
    """

    paths: list[str]
    select: str | None
    within: float
    output_dir: str

    def __post_init__(self) -> None:
        if not 0.0 <= self.within < 1.0:
            raise ValueError(f"within must be in [0, 1), such as 0.01 for 1 %; got {self.within}")


@dataclass(kw_only=True)
class ServeRoot:
    """`toolkit serve`: an exported model behind HTTP.

    Attributes:
        onnx: Export folder, with its tokenizer.
    """

    onnx: str
    engine: EngineConfig
    serve: ServeConfig
    output_dir: str


def schema_keys(root: type, prefix: str = "") -> list[str]:
    """List the dotted names of all fields below a root dataclass."""
    keys = []
    for name, annotation in get_type_hints(root).items():
        keys.append(prefix + name)
        if is_dataclass(annotation) and isinstance(annotation, type):
            keys += schema_keys(annotation, f"{prefix}{name}.")
    return keys


def default_sparsity(**changes: Any) -> SparsityConfig:
    """Make a SparsityConfig of conf/sparsity/dense.yaml and of `changes` (plain values, nested).

    Raises:
        ValueError: A key is no field, or a value is of a wrong type or out of its range.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    defaults = _read_option("sparsity", "dense")
    try:
        return from_plain(SparsityConfig, OmegaConf.merge(defaults, changes))  # type: ignore[arg-type]
    except OmegaConfBaseException as error:
        raise ValueError(f"sparsity: {str(error).splitlines()[0]}") from None


def default_serve(onnx: str, **changes: Any) -> ServeRoot:
    """Make what `toolkit serve onnx=…` would compose, for servers that are not started by it.

    Args:
        onnx: Export folder.
        **changes: Values by dotted name, such as `{"serve.max_batch": 64}`.

    Raises:
        ValueError: A name is no field, or a value is of a wrong type or out of its range.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    values: Any = OmegaConf.create({"onnx": onnx, "output_dir": ""})
    values.engine, values.serve = _read_option("engine", "sparse"), _read_option("serve", "default")
    try:
        for name, value in changes.items():
            OmegaConf.update(values, name, value)
        return from_plain(ServeRoot, values)
    except OmegaConfBaseException as error:
        raise ValueError(f"serve: {str(error).splitlines()[0]}") from None


def narrow(config: Any, root: type[Root], **changes: Any) -> Root:
    """Make another root of the fields that it shares with `config`, and of `changes`."""
    names = [field.name for field in fields(root) if hasattr(config, field.name)]  # type: ignore[arg-type]
    return root(**{name: getattr(config, name) for name in names} | changes)


def from_plain(root: type[Root], values: dict[str, Any]) -> Root:
    """Make a root from plain values, as `toolkit.record.plain(asdict(root))` gives them.

    Raises:
        ValueError: A value is out of its range.
        OmegaConfBaseException: A key is no field, or a value of a wrong type or missing.
    """
    from omegaconf import OmegaConf  # here: a process that gets its configuration does without

    made: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(root), values))
    assert isinstance(made, root)
    return made


def _read_option(group: str, option: str) -> Any:
    from omegaconf import OmegaConf

    text = (files("toolkit.conf") / group / f"{option}.yaml").read_text(encoding="utf-8")
    return OmegaConf.create(text)


def _check_at_least(field: str, value: float, least: float) -> None:
    if value < least:
        raise ValueError(f"{field} must be at least {least}; got {value}")
