"""Sentence embeddings: texts alone to learn from, and scored pairs of texts to be judged by.

An example is a dict: `texts` (one or two str) and `score` (float, how alike two texts are, or
None). Every text is a feature of its own. T: tokens of a text, D: features of its vector.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from toolkit.config import Pooling, TaskConfig
from toolkit.errors import InputError, UsageError
from toolkit.tasks.features import Example, Feature, feature_of, unset
from toolkit.tasks.metrics import spearman
from toolkit.tasks.regression import number
from toolkit.tasks.rows import READERS, check_is_file, lines_of, read_rows, text_of

AUTO_CLASS = "AutoModel"
OUTPUTS = ("last_hidden_state",)
TARGETS = ()  # no labels: what is learnt is a teacher's vector
# Spearman's rank correlation of cosines with scores; the mean cosine with the teacher's vectors.
METRICS = ("spearman", "similarity")
TEACHER_VECTOR = "teacher_vector"  # (D,), what a feature carries where a teacher is at hand


def read_file(path: Path, task: TaskConfig) -> Iterator[Example]:
    """Read texts, or scored pairs.

    Args:
        path: A file of rows, as `toolkit.tasks.rows.read_rows`; any other has one text per line.
        task: Those of `text_columns` that the file has are read. `eval_file` must have two of
            them, and `label_column`.

    Raises:
        InputError: The file is missing or damaged, naming the line.
    """
    is_judging = task.eval_file is not None and path == Path(task.eval_file)
    if path.suffix.lower() not in READERS:
        check_is_file(path, task)
        if is_judging:
            raise InputError(
                f"task.eval_file={path} must hold scored pairs, in a file that ends in "
                f"{', '.join(READERS)}: without them leave it out, and similarity to the teacher "
                "alone is judged"
            )
        for _, line in lines_of(path):
            if line.strip():
                yield {"texts": [line.strip()], "score": None}
        return
    needed, wanted = 2 if is_judging else 1, list(task.text_columns or ())
    for place, row in read_rows(path, task):
        columns = [name for name in wanted if row.get(name) is not None]
        if not needed <= len(columns) <= 2:
            raise InputError(
                f"{place}: expected {needed} or two of task.text_columns={wanted}; found the "
                f"columns {list(row)}"
            )
        score = None
        if is_judging:
            label = str(task.label_column)
            if label not in row:
                raise InputError(
                    f"{place}: expected a number in task.label_column={label}; found the columns "
                    f"{list(row)}"
                )
            score = number(place, label, row[label])
        yield {"texts": [text_of(place, row, name, task) for name in columns], "score": score}


def check_scored(task: TaskConfig) -> None:
    """Refuse examples without scores where there is no teacher to compare with.

    Raises:
        UsageError: `task` names none.
    """
    is_own = task.train_file is not None or task.data_dir is not None
    has_label = task.path is not None and task.columns.get("label") is not None
    if task.eval_file is None and (is_own or not has_label):
        raise UsageError(
            f"accuracy=true judges task={task.name} by scored pairs of texts: name a file of "
            "them with task.eval_file=F"
        )


def from_hub(row: Mapping[str, Any], task: TaskConfig) -> Example:
    """Turn a row of a hub data set into an example: `columns` `text`, `text_pair` and `label`."""
    names = [task.columns.get(key) for key in ("text", "text_pair")]
    label = task.columns.get("label")
    return {
        "texts": [str(row[name]).strip() for name in names if name is not None],
        "score": None if label is None else float(row[label]),
    }


def encode(
    examples: Sequence[Example], tokenizer: Tokenizer, task: TaskConfig, training: bool
) -> list[Feature]:
    """Encode one feature per text, cut at `task.max_length` tokens; those of a pair in a row."""
    tokenizer = unset(tokenizer)
    tokenizer.enable_truncation(task.max_length)
    numbered = [(i, text) for i, example in enumerate(examples) for text in example["texts"]]
    encodings = tokenizer.encode_batch([text for _, text in numbered])
    return [feature_of(encoding, i) for (i, _), encoding in zip(numbered, encodings, strict=True)]


def score(
    examples: Sequence[Example],
    features: Sequence[Feature],
    outputs: Sequence[NDArray[Any]],
    task: TaskConfig,
) -> dict[str, float]:
    """Judge hidden states (at least T, D), as far as there are scores or the teacher's vectors."""
    vectors = [
        pool(output, len(feature["input_ids"]), task.pooling)
        for feature, output in zip(features, outputs, strict=True)
    ]
    found = {}
    if all(example["score"] is not None for example in examples):
        of_example = defaultdict(list)
        for feature, vector in zip(features, vectors, strict=True):
            of_example[feature["example_index"]].append(vector)
        cosines = [cosine(*of_example[i]) for i in range(len(examples))]
        found["spearman"] = 100.0 * spearman(
            np.array(cosines), np.array([example["score"] for example in examples])
        )
    if all(TEACHER_VECTOR in feature for feature in features):
        theirs = [feature[TEACHER_VECTOR] for feature in features]
        found["similarity"] = 100.0 * float(np.mean(list(map(cosine, vectors, theirs))))
    return found


def pool(hidden: NDArray[Any], length: int, pooling: Pooling | None) -> NDArray[Any]:
    """Make one vector (D,) of a text's hidden states (at least `length`, D)."""
    return np.asarray(hidden[0] if pooling is Pooling.cls else hidden[:length].mean(axis=0))


def cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Return the cosine of two vectors (D,), in [-1, 1]; 0 where one is all zeros."""
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / size if size > 0 else 0.0
