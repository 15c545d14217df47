"""The same app on ONNX Runtime: what to measure our engine's server against.

`python tests/support/stock_server.py EXPORT THREADS` prints its URL once it listens.
"""

import os
import sys
from pathlib import Path
from typing import Any

import onnxruntime
import uvicorn

from toolkit.artifact.exported import read_exported
from toolkit.config import ServeRoot, default_serve
from toolkit.serving.app import make_app
from toolkit.serving.journal import log, start_log
from toolkit.serving.model import Model, describe


def load(config: ServeRoot) -> Model:
    """Load an export into ONNX Runtime; batches are padded to their longest text."""
    exported = read_exported(Path(config.onnx))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = config.engine.num_threads or len(os.sched_getaffinity(0))
    session = onnxruntime.InferenceSession(str(exported.onnx), options)
    names = [output.name for output in session.get_outputs()]

    def run(inputs: dict[str, Any]) -> dict[str, Any]:
        return dict(zip(names, session.run(None, inputs), strict=True))

    return describe(config, exported, exported.inputs, run, "float32")


if __name__ == "__main__":
    config = default_serve(sys.argv[1], **{"engine.num_threads": int(sys.argv[2])})
    start_log()
    listening = uvicorn.Config(
        make_app(config, load), port=0, lifespan="on", access_log=False, log_config=None
    )
    socket = listening.bind_socket()
    socket.listen(listening.backlog)
    log("ready", url=f"http://127.0.0.1:{socket.getsockname()[1]}/")
    uvicorn.Server(listening).run(sockets=[socket])
