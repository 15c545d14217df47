"""The `toolkit` command: verb → Hydra → typed configuration → the verb's function."""

import importlib
import logging
import os
import signal
import sys
from importlib.metadata import version
from typing import Any, NoReturn

from toolkit.errors import UsageError, fail, nearest

HELP = """\
usage: toolkit VERB [key=value …] [group=option …] [flags]

verbs:
  train    make a model small: drop layers, prune, distil, evaluate
  export   write a checkpoint as ONNX and prove that it computes the same
  bench    measure engines side by side, in one interleaved run
  grid     measure models of many depths, sparsities and precisions before training any
  report   collect the records of runs into a table and a picture
  serve    answer requests over HTTP with an exported model
  info     show CPU, instruction sets, threads decided and why, versions

  toolkit VERB --help      keys, groups and their options
  toolkit VERB --cfg job   the configuration as it would run, without running it
  toolkit VERB -m …        one run for each combination of a,b values
  toolkit VERB -q | -v     only errors and the line of the result | lines for debugging, too
  toolkit train recipe_file=FILE.md   a SparseML recipe, or one of ours, from anywhere
  toolkit --version

exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 below a gate
"""

# Each a module, and a root in toolkit.config.
COMMANDS = ("train", "export", "bench", "grid", "report", "serve")

# What completion offers: ours, and Hydra's.
FLAGS = ("-q", "-v", "-m", "--multirun", "--help", "--cfg", "--info", "--resolve", "-cn", "-cd")


def main() -> NoReturn:
    """Run the command line of this process and exit."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    try:
        try:
            code = run(sys.argv[1:])
        finally:
            print(end="", flush=True)  # here, and not when Python ends, may it fail
    except (Exception, KeyboardInterrupt) as error:
        code = fail(error, wants_traceback)
    sys.exit(code)


def run(args: list[str]) -> int:
    """Run one command line and return its exit code.

    Raises:
        UsageError: It is wrong.
    """
    verb, rest = (args[0], args[1:]) if args else ("", [])
    if verb in ("--help", "-h"):
        print(HELP, end="")
    elif verb == "--version":
        print(f"toolkit {version('toolkit')}")
    elif verb == "info":
        from toolkit.environment import summary

        print(summary())
    elif verb in ("-sc", "--shell-completion"):
        return complete(args)
    elif verb in COMMANDS:
        return run_verb(verb, rest)
    else:
        fault = f"'{verb}' is no verb of toolkit" if verb else "a verb is missing"
        raise UsageError(f"{fault}; {nearest(verb, [*COMMANDS, 'info'])}")
    return 0


def run_verb(verb: str, args: list[str]) -> int:
    """Let Hydra compose the configuration and run the verb with it, once or as a sweep.

    Raises:
        UsageError: The configuration is wrong.
    """
    import hydra
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    import toolkit.config
    from toolkit.overrides import explain, rewrite, take_verbosity
    from toolkit.sweep import Sweep

    if verb == "train":
        from toolkit.recipes.command import take_recipes

        taken = take_recipes(args)
        if taken is None:
            return 0
        args = taken
    root = getattr(toolkit.config, f"{verb.capitalize()}Root")
    ConfigStore.instance().store(name=f"{verb}_schema", node=root)

    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then leaves its errors to us
    logging.raiseExceptions = False  # a log that nobody reads is no reason for tracebacks

    def job(config: Any) -> Any:
        return run_job(verb, root, config, wants_traceback)

    args = take_verbosity(args)
    sys.argv[1:] = rewrite(verb, args)
    sweep = Sweep(verb)
    try:
        with sweep:
            hydra.main("pkg://toolkit.conf", verb, version_base="1.3")(job)()
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        raise UsageError(explain(verb, root, args, error)) from error
    return sweep.exit_code


def run_job(verb: str, root: type, config: Any, wants_traceback: bool) -> Any:
    """Run one job, or one cell of a sweep, and say at once what went wrong.

    Returns:
        What a cell is worth to a sweeper: None where it went wrong, since others shall still run.

    Raises:
        SystemExit: A job that is no cell went wrong.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    hydra = HydraConfig.get()
    OmegaConf.update(config, "output_dir", hydra.runtime.output_dir, force_add=True)
    if hydra.mode is RunMode.MULTIRUN:
        from toolkit.sweep import run_cell

        return run_cell(hydra, config, lambda: work(verb, root, config), wants_traceback)
    try:
        if verb != "train" and config.get("resume"):
            raise UsageError(f"resume=true continues sweeps (-m) of {verb}, not a single run")
        work(verb, root, config)
    except Exception as error:
        raise SystemExit(fail(error, wants_traceback)) from None


def work(verb: str, root: type, config: Any) -> None:
    """Call the verb with its composed configuration, every value checked."""
    from toolkit.overrides import convert

    checked = convert(verb, root, config)
    getattr(importlib.import_module(f"toolkit.{verb}"), verb)(checked)


def complete(args: list[str]) -> int:
    """Serve shell completion: verbs first, then Hydra's answers for the verb."""
    words = os.environ.get("COMP_LINE", "").split(" ")
    if len(words) > 2 and words[-1].startswith("-"):
        print(" ".join(FLAGS))
        return 0
    if not args[-1].startswith("query=") or (len(words) > 2 and words[1] in COMMANDS):
        verb = words.pop(1) if len(words) > 2 else "train"
        os.environ["COMP_LINE"] = " ".join(words)
        return run_verb(verb, args)
    print(" ".join([*COMMANDS, "info"]))
    return 0


if __name__ == "__main__":
    main()
