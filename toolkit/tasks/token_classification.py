"""Which of C classes each word of a text belongs to: names of people and places, parts of speech.

An example is a dict: `words` (list of str) and `labels` (a list of as many int in [0, num_labels)).
T: tokens of a text.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from toolkit.config import TaskConfig
from toolkit.errors import InputError, UsageError
from toolkit.tasks.features import IGNORED, Example, Feature, feature_of, unset
from toolkit.tasks.labels import number_of, spell
from toolkit.tasks.metrics import entities
from toolkit.tasks.rows import Rows, check_is_file, columns_of, found, lines_of, read_rows

AUTO_CLASS = "AutoModelForTokenClassification"
OUTPUTS = ("logits",)
TARGETS = ("labels",)
METRICS = ("f1", "precision", "recall", "accuracy")  # of whole entities; accuracy of words
# Files of one word per line, as CoNLL-2003's: its own are called eng.train, eng.testa, eng.testb.
COLUMN_FILES = (".conll", ".txt", ".bio", ".iob", ".train", ".testa", ".testb")
DOCUMENT = "-DOCSTART-"  # the first word of a line that only says that a document begins
OUTSIDE = "O"  # the tag of a word in no entity


def check(task: TaskConfig) -> None:
    """Refuse to look for entities where labels mark none.

    Raises:
        UsageError: A label is neither O nor such as B-PER.
    """
    plain = [n for n in task.label_names or () if n != OUTSIDE and n[1:2] != "-"]
    if plain and set(task.metrics) != {"accuracy"}:
        raise UsageError(
            f"f1, precision and recall count entities, tagged such as B-PER, I-PER and O, but "
            f"task={task.name} has labels such as {plain[0]!r}: choose task.metrics=[accuracy], "
            "the fraction of words that are right"
        )


def read_file(path: Path, task: TaskConfig) -> Iterator[Example]:
    """Read texts whose words each have a tag.

    Args:
        path: A file of rows, as `toolkit.tasks.rows.read_rows`, words and tags each a list or a
            text with blanks between; or columns (`COLUMN_FILES`): a line per word, which comes
            first and the tag last, a blank line after each text.
        task: `file_columns`, or `text_columns` and `label_column`, name the columns of rows. With
            neither label names nor their number stated, labels stay as they are spelled.

    Raises:
        InputError: The file is missing or damaged, naming the line.
    """
    columns = columns_of(task, task.file_columns)
    words, tags = str(columns["text"]), str(columns["label"])
    is_columns = path.suffix.lower() in COLUMN_FILES
    for place, row in _read_columns(path, task, words, tags) if is_columns else read_rows(
        path, task, (words, tags)
    ):  # fmt: skip
        yield _example(place, row, words, tags, task)


def from_hub(row: Mapping[str, Any], task: TaskConfig) -> Example:
    """Turn a row of a hub data set into an example."""
    columns = columns_of(task, task.columns)
    words, tags = str(columns["text"]), str(columns["label"])
    return _example(f"task={task.name}", row, words, tags, task)


def labels_in(example: Example) -> list[Any]:
    """Return the labels of an example."""
    return list(example["labels"])


def encode(
    examples: Sequence[Example], tokenizer: Tokenizer, task: TaskConfig, training: bool
) -> list[Feature]:
    """Encode one feature per example, cut at `task.max_length` tokens.

    `labels` has T ints: a word's first token has its label, all others `IGNORED`; `words` are the
    numbers of the words that have a token.
    """
    tokenizer = unset(tokenizer)
    tokenizer.enable_truncation(task.max_length)
    # RoBERTa's tokens tell a word behind a blank from one at the start; others drop the blank
    texts = [[" " * (i > 0) + w for i, w in enumerate(e["words"])] for e in examples]
    encodings = tokenizer.encode_batch(texts, is_pretokenized=True)
    features = []
    for index, (example, encoding) in enumerate(zip(examples, encodings, strict=True)):
        words: list[int] = []
        labels = []
        for word in encoding.word_ids:
            if word is None or word in words[-1:]:
                labels.append(IGNORED)
            else:
                labels.append(example["labels"][word])
                words.append(word)
        more = {"labels": labels, "words": words, "is_cut": bool(encoding.overflowing)}
        features.append(feature_of(encoding, index, **more))
    return features


def score(
    examples: Sequence[Example],
    features: Sequence[Feature],
    outputs: Sequence[NDArray[Any]],
    task: TaskConfig,
) -> dict[str, float]:
    """Judge logits (at least T, C) of every text; a word that was cut off counts as found in none.

    A word the tokenizer makes no token of, such as one of control characters alone, likewise.
    """
    names = task.label_names or [str(number) for number in range(task.num_labels or 0)]
    outside = names.index(OUTSIDE) if OUTSIDE in names else -1
    predicted, expected = [], []
    for feature, logits in zip(features, outputs, strict=True):
        labels = examples[feature["example_index"]]["labels"]
        found_here = [outside] * len(labels)
        firsts = [t for t, label in enumerate(feature["labels"]) if label != IGNORED]
        for word, token in zip(feature["words"], firsts, strict=True):
            found_here[word] = int(np.argmax(logits[token]))
        predicted.append(found_here)
        expected.append(labels)
    right = np.concatenate(predicted) == np.concatenate(expected)
    scores = {"accuracy": 100.0 * float(np.mean(right))}
    if set(task.metrics) != {"accuracy"}:
        spelled = [[[names[i] if i >= 0 else OUTSIDE for i in text] for text in texts]
                   for texts in (predicted, expected)]  # fmt: skip
        scores |= {name: 100.0 * value for name, value in entities(*spelled).items()}
    return scores


def _example(
    place: str, row: Mapping[str, Any], words: str, tags: str, task: TaskConfig
) -> Example:
    lists = []
    for column in (words, tags):
        value = row[column]
        value = value.split() if isinstance(value, str) else value
        if not isinstance(value, list) or not value:
            raise InputError(
                f"{place}: expected a list in column {column!r}, one entry per word, or a text "
                f"with blanks between; {found(row[column])}"
            )
        lists.append(value)
    if len(lists[0]) != len(lists[1]):
        raise InputError(
            f"{place}: expected one tag per word; found {len(lists[0])} words in {words!r} and "
            f"{len(lists[1])} tags in {tags!r}"
        )
    for word in lists[0]:
        if not isinstance(word, str) or not word.strip():
            raise InputError(f"{place}: expected words in column {words!r}; {found(word)}")
    labels = [number_of(place, tags, spell(place, tags, tag), task) for tag in lists[1]]
    return {"words": lists[0], "labels": labels}


def _read_columns(path: Path, task: TaskConfig, words: str, tags: str) -> Rows:
    """Read a file of one word per line."""
    check_is_file(path, task)
    row: dict[str, list[str]] = {words: [], tags: []}
    start, width = 0, 0
    for number, line in lines_of(path):
        fields = line.split()
        if fields and fields[0] != DOCUMENT:
            width = width or len(fields)
            if len(fields) != width or width < 2:
                raise InputError(
                    f"{path}, line {number}: expected "
                    + (f"{width} columns as before" if width > 1 else "a word and its tag")
                    + f", with blanks between; found {len(fields)}"
                )
            start = start or number
            row[words].append(fields[0])
            row[tags].append(fields[-1])
        elif start:
            yield f"{path}, line {start}", row
            row, start = {words: [], tags: []}, 0
    if start:
        yield f"{path}, line {start}", row
