"""What half precision does to a real model's answers, on any CPU: its instructions are imitated.

    python tests/support/half_accuracy.py EXPORT dev.tsv --columns sentence --label label

Every weight of the encoder runs in the table form in half precision, by the model of FP16
instructions in plain C (`isa/models.h`); the same file in float32 is what it is compared with.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from toolkit.engine.engine import Engine
from toolkit.engine.reader.graph import read_graph

BATCH = 32


def logits_of(
    engine: Engine, tokenizer: Tokenizer, texts: list[tuple[str, ...]]
) -> NDArray[np.float32]:
    """Run all texts in batches, padded to the longest of each."""
    parts = []
    for first in range(0, len(texts), BATCH):
        batch = [text if len(text) > 1 else text[0] for text in texts[first : first + BATCH]]
        found = tokenizer.encode_batch(batch)
        columns = ("ids", "attention_mask", "type_ids")
        arrays = [np.array([getattr(one, name) for one in found]) for name in columns]
        names = ("input_ids", "attention_mask", "token_type_ids")
        inputs = {n: a for n, a in zip(names, arrays, strict=True) if n in engine.inputs}
        parts.append(engine.run(inputs)["logits"])
    return np.concatenate(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("export", type=Path)
    parser.add_argument("rows", type=Path, help="tab-separated, with a header")
    parser.add_argument("--columns", nargs="+", required=True)
    parser.add_argument("--label", required=True)
    parser.add_argument("--max-length", type=int, default=128)
    options = parser.parse_args()
    with options.rows.open(encoding="utf-8-sig", newline="") as file:
        rows = [*csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    texts = [tuple(row[name] for name in options.columns) for row in rows]
    labels = np.array([int(row[options.label]) for row in rows])
    tokenizer = Tokenizer.from_file(str(options.export / "tokenizer.json"))
    tokenizer.enable_truncation(options.max_length)
    tokenizer.enable_padding()
    file = options.export / "model.onnx"
    exact = logits_of(Engine.load(file, keep_timings=False), tokenizer, texts)
    halves = Engine(read_graph(file), 2, "asked for", "f16_model", "table", "fp16")
    found = logits_of(halves, tokenizer, texts)
    difference = np.abs(found - exact)
    changed = np.count_nonzero(found.argmax(1) != exact.argmax(1))
    float32, half = (100 * (logits.argmax(1) == labels).mean() for logits in (exact, found))
    print(
        f"{len(labels)} texts; float32 {float32:.2f} %, half {half:.2f} %, "
        f"{changed} answers changed; logits differ by {difference.mean():.2g} in the mean, "
        f"{np.sqrt((difference**2).mean()):.2g} root mean square, {difference.max():.2g} at most"
    )


if __name__ == "__main__":
    main()
