"""`toolkit serve`: an exported model behind HTTP, until it is told to stop."""

import uvicorn

from toolkit.config import ServeRoot
from toolkit.environment import decide_num_threads
from toolkit.errors import InputError
from toolkit.serving.app import make_app
from toolkit.serving.journal import log, start_log


def serve(config: ServeRoot) -> None:
    """Load the model, listen, answer; SIGTERM or Ctrl-C end it once what has begun is answered.

    Raises:
        KeyboardInterrupt: Ctrl-C ended it.
        InputError: The model cannot be read, or the address is taken.
        UsageError: The configuration asks for what is not there.
    """
    start_log()
    app = make_app(config)
    options = config.serve
    listening = uvicorn.Config(
        app,
        host=options.host,
        port=options.port,
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=round(options.shutdown_timeout_s),
    )
    try:
        socket = listening.bind_socket()
    except SystemExit:  # uvicorn has logged why
        raise InputError(
            f"cannot listen on {options.host}:{options.port}: choose another serve.port, or 0 for "
            "any that is free"
        ) from None
    socket.listen(listening.backlog)  # who connects from here on is answered
    log(
        "ready",
        url=f"http://{options.host}:{socket.getsockname()[1]}/",
        onnx=config.onnx,
        threads=decide_num_threads(config.engine.num_threads)[1],
    )
    try:
        uvicorn.Server(listening).run(sockets=[socket])
    finally:  # uvicorn ends by the signal that told it to …
        log("stopped")
    raise KeyboardInterrupt  # … unless that was Ctrl-C, which asyncio keeps to itself
