"""What half precision does to a real model's answers, on any CPU: its instructions are imitated.

    PYTHONPATH=tests python tests/support/half_accuracy.py EXPORT task=sst2 task.max_length=64

Every weight of the encoder runs in the table form in half precision, by the model of FP16
instructions in plain C (`isa/models.h`); the same file in float32 is what it is compared with.
"""

import sys
from pathlib import Path

import numpy as np
from support.configs import compose

from toolkit.artifact.exported import read_exported
from toolkit.engine.engine import Engine
from toolkit.engine.reader.graph import read_graph
from toolkit.measure.batches import collate_batches, feed, read_task
from toolkit.tasks import evaluate

BATCH_SIZE = 32


def main(export: str, *overrides: str) -> None:
    task = compose("bench", *overrides).task
    model = read_exported(Path(export))
    examples, features = read_task(task, model, seed=0)
    batches = [feed(model, batch) for batch in collate_batches(model, features, BATCH_SIZE)]
    exact = Engine.load(model.onnx, keep_timings=False)
    halves = Engine(read_graph(model.onnx), 2, "asked for", "f16_model", "table", "fp16")
    logits = []
    for name, engine in (("float32", exact), ("half", halves)):
        logits.append(np.concatenate([engine.run(batch)["logits"] for batch in batches]))
        print(name, evaluate(task, examples, features, list(logits[-1])))
    difference = np.abs(logits[1] - logits[0])
    changed = np.count_nonzero(logits[1].argmax(1) != logits[0].argmax(1))
    print(
        f"{len(features)} texts, {changed} answers changed; logits differ by "
        f"{difference.mean():.2g} in the mean, {np.sqrt((difference**2).mean()):.2g} root mean "
        f"square, {difference.max():.2g} at most"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
