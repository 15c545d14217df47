"""How the cost of a call grows with batch, length, depth, zeros and threads; with pictures.

    python -m toolkit.scaling OUT_FOLDER [--quick]

measures the sparse engine on random weights of BERT-base's shape (12 layers and 90 % zeros where
nothing else is said) and writes `scaling.json` and `scaling.png`. All points of one panel are
measured in turn, round by round, so that a drift of the machine hits all of them. A few minutes on
two cores; `--quick` takes fewer points of a smaller model, to try it.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

from toolkit.engine.engine import find_isa
from toolkit.environment import affinity, describe_machine
from toolkit.files import write_text
from toolkit.measure.scaling import CLIFF, Engines, cliffs, measure_cases, summarise_sweep, sweeps


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write both files, and print what was found."""
    parser = argparse.ArgumentParser("python -m toolkit.scaling", description=__doc__)
    parser.add_argument("out_folder", type=Path)
    parser.add_argument("--quick", action="store_true", help="few points of a small model")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of every point")
    options = parser.parse_args(arguments)
    # here: matplotlib takes a second to import
    from toolkit.present.figures import save_png
    from toolkit.present.figures.scaling import draw_scaling

    engines, lines, machine = Engines(), [], describe_machine()
    planned = sweeps(affinity(), options.quick)
    for panel in dict.fromkeys(sweep.panel for sweep in planned):
        start = time.perf_counter()
        shown = [sweep for sweep in planned if sweep.panel == panel]
        cases = list(dict.fromkeys(case for sweep in shown for case in sweep.cases))
        found = measure_cases(cases, engines.run, max(1, options.rounds))
        lines += [summarise_sweep(sweep, found) for sweep in shown]
        engines.forget()
        print(f"{panel}: {time.perf_counter() - start:.0f} s", flush=True)
    problems = cliffs(lines)
    result = {"machine": machine, "rounds": options.rounds, "lines": lines, "cliffs": problems}
    write_text(options.out_folder / "scaling.json", json.dumps(result, indent=1) + "\n")
    usual = planned[0].cases[0]
    title = (
        f"BERT-base shape, {usual.layers} layers, {usual.zeros:.0%} zeros where nothing else is "
        f"said; {machine['cpu']}, {find_isa('auto')}, {usual.threads} threads"
    )
    save_png(options.out_folder / "scaling.png", draw_scaling(lines, title))
    print("\n".join(problems or [f"no cliffs: no neighbours differ by {CLIFF} or more"]))


if __name__ == "__main__":
    main()
