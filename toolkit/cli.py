"""The `toolkit` command: verb → Hydra → typed configuration → the verb's function."""

import importlib
import os
import signal
import sys
import traceback
from importlib.metadata import version
from typing import Any, NoReturn

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
  toolkit --version

exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 below a gate
"""

# verb: its root in toolkit.config
COMMANDS = {
    "train": "TrainRoot",
    "export": "ExportRoot",
    "bench": "BenchRoot",
    "report": "ReportRoot",
}


class JobError(Exception):
    """A job of a sweep ended badly, and has said so; the argument is its exit code."""


def main() -> NoReturn:
    """Run the command line of this process and exit."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        sys.exit(run(sys.argv[1:]))
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def run(args: list[str]) -> int:
    """Run one command line and return its exit code."""
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
        from toolkit.errors import nearest

        fault = f"'{verb}' is no verb of toolkit" if verb else "a verb is missing"
        return fail(2, f"{fault}; {nearest(verb, [*COMMANDS, 'info'])}")
    return 0


def run_verb(verb: str, args: list[str]) -> int:
    """Let Hydra compose the configuration and run the verb with it, once or as a sweep."""
    import hydra
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException

    import toolkit.config
    from toolkit.overrides import explain, rewrite

    root = getattr(toolkit.config, COMMANDS[verb])
    ConfigStore.instance().store(name=f"{verb}_schema", node=root)

    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then leaves its errors to us

    def job(config: Any) -> None:
        run_job(verb, root, config, wants_traceback)

    try:
        sys.argv[1:] = rewrite(verb, args)
        hydra.main("pkg://toolkit.conf", verb, version_base="1.3")(job)()
    except JobError as error:
        return int(error.args[0])
    except Exception as error:
        if wants_traceback:
            traceback.print_exc()
        # A file that cannot be written is no fault of the configuration; one not found among the
        # options is, though Hydra derives that error from OSError too.
        is_usage = isinstance(error, HydraException) or not isinstance(error, OSError)
        return fail(2 if is_usage else 1, explain(verb, root, args, error))
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

    from toolkit.errors import GateError, UsageError
    from toolkit.overrides import convert

    job = HydraConfig.get().job
    is_sweep = HydraConfig.get().mode is RunMode.MULTIRUN
    OmegaConf.update(config, "output_dir", HydraConfig.get().runtime.output_dir, force_add=True)
    try:
        checked = convert(verb, root, config)
        getattr(importlib.import_module(f"toolkit.{verb}"), verb)(checked)
    except Exception as error:
        if wants_traceback:
            traceback.print_exc()
        code = {UsageError: 2, GateError: 3}.get(type(error), 1)
        sentence = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, ModuleNotFoundError):  # the slim deployment has no torch
            sentence = (
                f"{verb} needs {error.name}, which is not installed: pip install {error.name}"
            )
        fail(code, f"job {job.num} ({job.override_dirname}): {sentence}" if is_sweep else sentence)
        raise JobError(code) if is_sweep else SystemExit(code) from None


def complete(args: list[str]) -> int:
    """Serve shell completion: verbs first, then Hydra's answers for the verb."""
    words = os.environ.get("COMP_LINE", "").split(" ")
    if not args[-1].startswith("query=") or (len(words) > 2 and words[1] in COMMANDS):
        verb = words.pop(1) if len(words) > 2 else "train"
        os.environ["COMP_LINE"] = " ".join(words)
        return run_verb(verb, args)
    print(" ".join([*COMMANDS, "info"]))
    return 0


def fail(code: int, sentence: str) -> int:
    """Say on stderr what went wrong and return the exit code."""
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    main()
