"""What README shows runs as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

from conftest import REPO, Run
from safetensors.numpy import load_file
from support.configs import TINY


def test_the_example_of_a_trainer_script(toolkit: Run, tmp_path: Path) -> None:
    readme = (REPO / "README.md").read_text()
    section = readme.split("## In your own Trainer script")[1]
    example = section.split("```python\n")[1].split("```")[0]
    done = toolkit("train", *TINY, "output_dir=runs/teacher")
    assert done.returncode == 0, done.stderr
    run = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    (command,) = re.findall(r"toolkit (export checkpoint=\S+)", example)
    weights = load_file(tmp_path / command.split("=")[1] / "model.safetensors")
    query = weights["bert.encoder.layer.0.attention.self.query.weight"]
    assert (query == 0).sum() == round(0.8 * query.size)
    exported = toolkit(*command.split())
    assert exported.returncode == 0, exported.stderr
