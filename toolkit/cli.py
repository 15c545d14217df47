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
  report   collect the records of runs into a table and a picture
  info     show CPU, instruction sets, threads decided and why, versions

  toolkit VERB --help      keys, groups and their options
  toolkit VERB --cfg job   the configuration as it would run, without running it
  toolkit VERB -m …        one run for each combination of a,b values
  toolkit train recipe_file=FILE.md   a SparseML recipe, or one of ours, from anywhere
  toolkit --version

exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 below a gate
"""

COMMANDS = ("train", "export", "bench", "report")  # each a module, and a root in toolkit.config


class JobError(Exception):
    """A job of a sweep ended badly, and has said so; the argument is its exit code."""


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
    from toolkit.overrides import explain, rewrite

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

    def job(config: Any) -> None:
        run_job(verb, root, config, wants_traceback)

    sys.argv[1:] = rewrite(verb, args)
    try:
        hydra.main("pkg://toolkit.conf", verb, version_base="1.3")(job)()
    except JobError as error:
        return int(error.args[0])
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        raise UsageError(explain(verb, root, args, error)) from error
    return 0


def run_job(verb: str, root: type, config: Any, wants_traceback: bool) -> None:
    """Run one job and say at once what went wrong.

    Raises:
        JobError: It went wrong, but it is one of a sweep, whose other jobs shall still run.
        SystemExit: It went wrong.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from toolkit.overrides import convert

    hydra = HydraConfig.get()
    OmegaConf.update(config, "output_dir", hydra.runtime.output_dir, force_add=True)
    try:
        checked = convert(verb, root, config)
        getattr(importlib.import_module(f"toolkit.{verb}"), verb)(checked)
    except Exception as error:
        if hydra.mode is RunMode.MULTIRUN:
            job = f"job {hydra.job.num} ({hydra.job.override_dirname}): "
            raise JobError(fail(error, wants_traceback, job)) from None
        raise SystemExit(fail(error, wants_traceback)) from None


def complete(args: list[str]) -> int:
    """Serve shell completion: verbs first, then Hydra's answers for the verb."""
    words = os.environ.get("COMP_LINE", "").split(" ")
    if not args[-1].startswith("query=") or (len(words) > 2 and words[1] in COMMANDS):
        verb = words.pop(1) if len(words) > 2 else "train"
        os.environ["COMP_LINE"] = " ".join(words)
        return run_verb(verb, args)
    print(" ".join([*COMMANDS, "info"]))
    return 0


if __name__ == "__main__":
    main()
