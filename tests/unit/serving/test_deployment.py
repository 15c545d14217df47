"""The app as replicas on a Ray cluster: a real one, of this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.serving import write_export

pytest.importorskip("ray", reason="needs ray[serve]")

# In a process of its own: Ray starts others and leaves threads and open files behind.
SCRIPT = """
import json, os, socket, sys, threading
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
os.environ["RAY_worker_niceness"] = "0"  # or other tests leave its processes no time
import ray
from ray import serve
from support.serving import get, post
from toolkit.config import default_serve
from toolkit.serving.deployment import application

export, texts = sys.argv[1], json.loads(sys.argv[2])
with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
memory = 80 * 2**20
ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=memory)
serve.start(http_options={"host": "127.0.0.1", "port": port})
serve.run(application(default_serve(export, **{"engine.num_threads": 1}), num_replicas=2))
url, found = f"http://127.0.0.1:{port}", {}

def ask(number, text):
    found[number] = post(f"{url}/embed", {"inputs": text})

threads = [threading.Thread(target=ask, args=pair) for pair in enumerate(texts)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
replicas = serve.status().applications["default"].deployments["toolkit"].replica_states
info = json.loads(get(f"{url}/info")[1])
wrong = post(f"{url}/embed", {"inputs": []})[0]
print("FOUND", json.dumps([[found[i] for i in range(len(texts))], dict(replicas), info, wrong]))
serve.shutdown()
ray.shutdown()
"""


@pytest.mark.slow
def test_replicas_answer_as_one_server_does(tmp_path: Path) -> None:
    import numpy as np

    from toolkit.config import default_serve
    from toolkit.serving.answers import normalized, pooled
    from toolkit.serving.model import encode, load_model, run_batch
    from toolkit.tasks.features import feature_of

    export = write_export(tmp_path / "export", "base")
    texts = [f"the {noun} was {word}" for noun in ("soup", "bread") for word in ("good", "bad")] * 4
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(export), json.dumps(texts)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, done.stderr[-3000:]
    found, replicas, info, wrong = json.loads(lines[0].removeprefix("FOUND "))
    assert replicas == {"RUNNING": 2}
    assert info["model_type"] == {"embedding": {"pooling": "mean"}}
    assert wrong == 422
    model = load_model(default_serve(str(export), **{"engine.num_threads": 1}))
    outputs = run_batch(model, [feature_of(one, 0) for one in encode(model, texts, None)])
    hidden = [output["last_hidden_state"] for output in outputs]
    expected = normalized(np.stack([pooled(states, model.pooling) for states in hidden]))
    assert [status for status, _ in found] == [200] * len(texts)
    np.testing.assert_allclose([vectors[0] for _, vectors in found], expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pydantic's, by what ray imports
def test_what_cannot_be_deployed_gets_a_sentence() -> None:
    from toolkit.errors import UsageError
    from toolkit.serving.deployment import build

    with pytest.raises(UsageError, match="give onnx=DIR"):
        build({})
    with pytest.raises(UsageError, match="max_bach"):
        build({"onnx": "x", "serve.max_bach": "64"})
