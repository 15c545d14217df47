"""The app on a Ray cluster: replicas on many machines, one address.

`serve run toolkit.serving.deployment:build onnx=/path/to/export serve.max_batch=64`, or in a
configuration file of Ray Serve's with `args`. Replicas batch, each for itself; Ray starts, spreads
and restarts them.
"""

from collections.abc import Mapping
from typing import Any

from ray import serve
from ray.serve import Application

from toolkit.config import ServeRoot, default_serve
from toolkit.errors import UsageError


def build(args: Mapping[str, str]) -> Application:
    """Make an application of the dotted keys of `toolkit serve`; `onnx` must be among them.

    The threads of a replica are `engine.num_threads`, at least 1, and so many CPUs are reserved.

    Raises:
        UsageError: A key or value is wrong.
    """
    values = dict(args)
    if "onnx" not in values:
        raise UsageError("serve needs onnx: give onnx=DIR, a folder that every machine can read")
    onnx = values.pop("onnx")
    try:
        return application(default_serve(onnx, **{"engine.num_threads": 1} | values))
    except ValueError as error:
        raise UsageError(str(error)) from error


def application(config: ServeRoot, num_replicas: int = 1) -> Application:
    """Make an application of a configuration.

    Args:
        config: `engine.num_threads` is also how many CPUs each replica reserves, >= 1.
        num_replicas: Copies of the model.
    """

    def make() -> object:
        from toolkit.serving.app import make_app

        return make_app(config)

    deployment: Any = serve.deployment(
        serve.ingress(make)(),
        name="toolkit",
        num_replicas=num_replicas,
        max_ongoing_requests=config.serve.max_queue,
        ray_actor_options={"num_cpus": max(1, config.engine.num_threads)},
    )
    application: Application = deployment.bind()
    return application
