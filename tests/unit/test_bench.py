"""Measuring: rounds, ratios, agreement, one process per engine, and the record that remains."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from support.configs import compose

from toolkit.artifact.agreement import largest_difference
from toolkit.artifact.exported import describe_onnx, find_checkpoint, read_exported, size_bytes
from toolkit.bench import bench
from toolkit.config import BenchRoot, Scenario
from toolkit.errors import GateError, InputError, UsageError
from toolkit.measure.baseline import compare
from toolkit.measure.batches import feed, make_batches
from toolkit.measure.contenders import check_options, engine_of, parse_contender
from toolkit.measure.timing import (
    MIN_ROUNDS,
    speed_ratio,
    summarise_calls,
    time_rounds,
    warn_if_busy,
)
from toolkit.measure.what_if import find_model
from toolkit.measure.worker import Worker, load_batches, save_batches
from toolkit.record import new_record, read_record, write_record

pytestmark = pytest.mark.slow

VOCAB = 50


def make_config(**changes: Any) -> BenchRoot:
    quick = ("batch_size=2", "seq_len=8", "seconds=0", "min_iterations=1", "seed=1")
    config = compose("bench", "engine=onnxruntime", "engine.num_threads=1", *quick)
    assert isinstance(config, BenchRoot)
    tiny = replace(config.model, name="tiny")
    return replace(config, model=tiny, **changes)


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    """A file that other engines run: embeddings, masked, and their mean as logits."""
    table = np.random.default_rng(0).standard_normal((VOCAB, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["found"]),
        helper.make_node("Cast", ["attention_mask"], ["float_mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["float_mask", "last"], ["column"]),
        helper.make_node("Mul", ["found", "column"], ["hidden"]),
        helper.make_node("ReduceMean", ["hidden", "middle"], ["logits"], keepdims=0),
    ]
    shape = ["batch", "length"]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, shape)
            for name in ("input_ids", "attention_mask")
        ],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4]),
            helper.make_tensor_value_info("hidden", TensorProto.FLOAT, [*shape, 4]),
        ],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(np.array([-1]), "last"),
            numpy_helper.from_array(np.array([1]), "middle"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    with Worker("engine onnxruntime", tmp_path / "worker.log", 1) as running:
        yield running


def load(worker: Worker, onnx_file: Path) -> dict[str, Any]:
    batch = {name: np.ones((1, 4), np.int64) for name in ("input_ids", "attention_mask")}
    save_batches(onnx_file.with_name("batches.npz"), [batch])
    return worker.ask(
        "load",
        engine="onnxruntime",
        model=str(onnx_file),
        num_threads=1,
        isa="auto",
        kernel="auto",
        precision="fp32",
        batches=str(onnx_file.with_name("batches.npz")),
        inputs=list(batch),
    )


# ---- what is measured


@pytest.mark.parametrize(
    "text",
    ["sparse", "sparse:auto", "openvino:bf16", "onnxruntime@dense/model.onnx", "sparse:bf16@a:b@c"],
)
def test_a_contender_is_read_as_it_is_written(text: str) -> None:
    contender = parse_contender(text)
    assert contender.label == text
    assert engine_of(text) == contender.engine
    assert parse_contender(f"{contender.engine}:fp32").label == contender.engine


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("openvin:bf16", "'openvin' is no engine; did you mean 'openvino'?"),
        ("deepsparse:bf16", "engine deepsparse can be asked for precision fp32; got 'bf16'"),
        (
            "openvino:auto",
            "engine openvino can be asked for precision fp32, bf16, fp16; got 'auto'",
        ),
        ("sparse@", "'sparse@' must name an ONNX file or export folder behind @"),
        ("torch@x.onnx", "engine torch runs a checkpoint: it takes no file behind @"),
    ],
)
def test_a_contender_that_cannot_be_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=re.escape(sentence)):
        parse_contender(text)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["task.train_file=x.txt"],
        ["task.data_dir=x"],
        ["task.path=[a,b]", "task.columns.label=null"],
    ],
)
def test_embeddings_without_scored_pairs_are_refused_before_anything_is_measured(
    overrides: list[str],
) -> None:
    sentence = "accuracy=true judges task=embedding by scored pairs of texts"
    with pytest.raises(UsageError, match=f"{sentence}: name a file of them with task.eval_file=F"):
        check_options(compose("bench", "task=embedding", "accuracy=true", *overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        ["accuracy=true", "task.eval_file=x.tsv"],
        ["accuracy=true", "task.path=[a,b]"],
        ["accuracy=false"],
    ],
)
def test_embeddings_that_can_be_judged_are_not_refused(overrides: list[str]) -> None:
    assert check_options(compose("bench", "task=embedding", *overrides))


def test_data_that_are_missing_are_told_before_anything_is_timed(
    onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolkit.bench.start_worker", lambda *_: 1 / 0)
    sst2 = compose("bench", "task=sst2", f"task.data_dir={tmp_path}").task
    config = make_config(onnx=str(onnx_file), accuracy=True, task=sst2)
    with pytest.raises(InputError, match=r"dev\.tsv"):
        bench(config)


# ---- rounds and ratios


def fake(name: str, pass_s: float, log: list[str]) -> Callable[..., dict[str, Any]]:
    def ask(do: str, **arguments: Any) -> dict[str, Any]:
        log.append(f"{name} {do}")
        if do == "warm_up":
            return {"pass_s": pass_s}
        return {"call_s": [pass_s] * arguments["passes"], "peak_rss_bytes": 7}

    return ask


def test_rounds_take_turns_and_give_each_engine_its_time() -> None:
    log: list[str] = []
    asks = {name: fake(name, seconds, log) for name, seconds in (("a", 0.01), ("b", 0.4))}
    rounds, peaks = time_rounds(asks, seconds=10.0, min_iterations=1)
    assert log[:2] == ["a warm_up", "b warm_up"]
    assert log[2:] == ["a time", "b time"] * len(rounds["a"])
    totals = {name: sum(map(sum, calls)) for name, calls in rounds.items()}
    assert min(totals.values()) >= 10.0
    assert max(totals.values()) < 15.0
    assert len(rounds["a"]) == len(rounds["b"]) >= MIN_ROUNDS
    assert peaks == {"a": 7, "b": 7}


def test_rounds_go_on_until_there_are_enough_calls() -> None:
    rounds, _ = time_rounds({"a": fake("a", 3.0, [])}, seconds=0.0, min_iterations=12)
    assert sum(map(len, rounds["a"])) == 12
    rounds, _ = time_rounds({"a": fake("a", 3.0, [])}, seconds=0.0, min_iterations=1)
    assert len(rounds["a"]) == MIN_ROUNDS


def test_figures_of_known_times() -> None:
    figures = summarise_calls([[0.1, 0.1], [0.1, 0.1], [0.1, 0.5]], 32, 4096)
    assert figures["items_per_s"] == pytest.approx(320.0)  # the disturbed round does not count
    assert figures["tokens_per_s"] == pytest.approx(40960.0)
    assert figures["iterations"] == 6
    latency = figures["latency_ms"]
    assert latency["p50"] == pytest.approx(100.0)
    assert latency["mean"] == pytest.approx(1000 / 6)
    assert latency["p50"] < latency["p90"] < latency["p99"] < 500.0
    assert latency["std"] == pytest.approx(float(np.std([100.0] * 5 + [500.0])))


@settings(deadline=None)  # a busy machine is no failure
@given(
    st.lists(st.floats(0.001, 10), min_size=5, max_size=20),
    st.floats(0.1, 10),
    st.integers(0, 99),
)
def test_a_constant_ratio_is_found_whatever_the_machine_does(
    times: list[float], factor: float, seed: int
) -> None:
    ratio = speed_ratio([[time] for time in times], [[time * factor] for time in times], seed)
    assert ratio == pytest.approx({"ratio": factor, "low": factor, "high": factor})


def test_the_interval_covers_the_truth_and_is_repeatable() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(100):
        ours = [[seconds] for seconds in np.exp(rng.normal(0.0, 0.1, 20))]
        theirs = [[2 * seconds] for seconds in np.exp(rng.normal(0.0, 0.1, 20))]
        found = speed_ratio(ours, theirs, trial)
        assert found == speed_ratio(ours, theirs, trial)
        covered += found["low"] <= 2.0 <= found["high"]
    assert covered >= 88  # of 95 expected; three standard deviations of a binomial are 6.5


# ---- agreement


def test_padding_does_not_count_and_nan_does() -> None:
    mask = np.array([[1, 1, 0]])
    expected = {"hidden": np.zeros((1, 3, 2)), "logits": np.zeros((1, 2))}
    found = {name: array.copy() for name, array in expected.items()}
    found["hidden"][0, 2] = np.nan
    assert largest_difference(found, expected, mask) == 0.0
    found["hidden"][0, 1, 0] = -0.25
    assert largest_difference(found, expected, mask) == 0.25
    found["logits"][0, 0] = np.nan
    assert largest_difference(found, expected, mask) == np.inf
    assert largest_difference({}, expected, mask) == np.inf
    found["logits"] = np.zeros((1, 3))
    assert largest_difference(found, expected, mask) == np.inf


# ---- one process per engine


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def test_a_worker_runs_the_model_and_rests_between_answers(
    worker: Worker, onnx_file: Path, tmp_path: Path
) -> None:
    facts = load(worker, onnx_file)
    assert facts["version"]
    assert facts["load_s"] > 0
    batches = [
        {
            "input_ids": np.full((rows, 3), rows, np.int64),
            "attention_mask": np.ones((rows, 3), np.int64),
        }
        for rows in (1, 12)  # more than ten, so that "10" would sort before "2"
    ]
    save_batches(tmp_path / "in.npz", batches)
    worker.ask("run", inputs=str(tmp_path / "in.npz"), outputs=str(tmp_path / "out.npz"))
    outputs = load_batches(tmp_path / "out.npz")
    assert [output["hidden"].shape for output in outputs] == [(1, 3, 4), (12, 3, 4)]
    pid = worker._process.pid
    for _ in range(200):
        if state_of(pid) == "T":
            break
        time.sleep(0.01)
    assert state_of(pid) == "T"
    answer = worker.ask("time", passes=3)
    assert len(answer["call_s"]) == 3
    assert answer["peak_rss_bytes"] > 10e6


def test_an_error_in_a_worker_names_the_engine(worker: Worker, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(InputError, match=r"engine onnxruntime failed to load: .*model.onnx"):
        load(worker, tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("killer", "words"),
    [(signal.SIGKILL, "killed by SIGKILL, most often .* memory"), (signal.SIGILL, "illegal")],
)
def test_the_sudden_death_of_a_worker_is_told(
    worker: Worker, onnx_file: Path, killer: signal.Signals, words: str
) -> None:
    load(worker, onnx_file)
    worker._process.send_signal(killer)
    with pytest.raises(InputError, match=f"engine onnxruntime failed to time: .*{words}"):
        worker.ask("time", passes=1)


def test_a_worker_does_not_outlive_its_parent(tmp_path: Path) -> None:
    inputs = tmp_path / "none.npz"
    save_batches(inputs, [])
    script = (
        "import os, signal, sys; from pathlib import Path; "
        "from toolkit.measure.worker import Worker; "
        f"worker = Worker('x', Path({str(tmp_path / 'log')!r}), 1); "
        "print(worker._process.pid, flush=True); "
        f"worker.ask('run', inputs={str(inputs)!r}, outputs={str(inputs)!r}); "
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == -signal.SIGKILL
    pid = int(run.stdout)
    for _ in range(500):
        if not Path(f"/proc/{pid}").exists() or state_of(pid) == "Z":
            return  # gone, or only waiting to be collected by its new parent
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the worker was still there 5 seconds after its parent")


def test_neither_bench_nor_report_imports_torch() -> None:
    script = (
        "import sys, toolkit.bench, toolkit.measure.worker, toolkit.report; "
        "print(sorted({'torch', 'transformers', 'matplotlib'} & sys.modules.keys()))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert run.stdout.strip() == "[]"


# ---- the model and its inputs


def test_an_exported_folder_is_read(onnx_file: Path) -> None:
    model = read_exported(onnx_file.parent)
    assert model.inputs == ["input_ids", "attention_mask"]
    assert (model.vocab_size, model.pad_id, model.record) == (VOCAB, 0, None)
    assert model.max_tokens > 10**6
    facts = {"model_type": "roberta", "pad_token_id": 1, "max_position_embeddings": 514}
    onnx_file.with_name("config.json").write_text(json.dumps(facts))
    model = read_exported(onnx_file)
    assert (model.pad_id, model.max_tokens) == (1, 512)
    assert size_bytes(onnx_file) == onnx_file.stat().st_size
    assert describe_onnx(onnx_file) == {"name": "model"}  # no encoder in it


def test_what_is_no_bert_is_refused(onnx_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is none"):
        read_exported(tmp_path / "nowhere")
    whole = onnx_file.read_bytes()
    onnx_file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not a complete ONNX file"):
        read_exported(onnx_file)
    onnx_file.write_bytes(whole.replace(b"attention_mask", b"attention_musk"))
    with pytest.raises(InputError, match=r"not a BERT .* its inputs are input_ids, attention_musk"):
        read_exported(onnx_file)
    onnx_file.write_bytes(whole)
    onnx_file.with_name("config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json is not valid JSON"):
        read_exported(onnx_file)


def test_torch_needs_the_checkpoint(onnx_file: Path) -> None:
    with pytest.raises(UsageError, match="names none"):
        find_checkpoint(onnx_file)
    onnx_file.with_name("export.json").write_text('{"checkpoint": "../gone"}')
    with pytest.raises(UsageError, match="gone, which is not there"):
        find_checkpoint(onnx_file)


def test_random_batches_are_whole_seeded_and_without_padding(onnx_file: Path) -> None:
    model = read_exported(onnx_file)
    (batch,) = make_batches(make_config(), model)
    assert batch["input_ids"].shape == (2, 8)
    assert batch["attention_mask"].all()
    assert not np.any(batch["input_ids"] == model.pad_id)
    assert list(feed(model, batch)) == model.inputs
    (again,) = make_batches(make_config(), model)
    (other,) = make_batches(make_config(seed=2), model)
    assert np.array_equal(batch["input_ids"], again["input_ids"])
    assert not np.array_equal(batch["input_ids"], other["input_ids"])


def test_too_long_a_text_is_a_usage_error(onnx_file: Path, tmp_path: Path) -> None:
    onnx_file.with_name("config.json").write_text('{"max_position_embeddings": 16}')
    with pytest.raises(UsageError, match=r"seq_len must be at most 16.* got 17"):
        find_model(make_config(onnx=str(onnx_file), seq_len=17), tmp_path)


@pytest.mark.parametrize(("user", "warned"), [(40, True), (10, False)])
def test_other_programs_are_noticed(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    user: int,
    warned: bool,
) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  500 0 100 9000 0 0 0 0 0 0\ncpu0 1 2\n")
    later = f"cpu  {500 + user} 0 100 {9000 + 100 - user} 0 0 0 0 0 0\n"
    monkeypatch.setattr(time, "sleep", lambda _: stat.write_text(later))
    warn_if_busy(stat)
    assert ("are using 40% of the CPUs" in capsys.readouterr().err) == warned
    warn_if_busy(tmp_path / "not Linux")


# ---- the record


def bench_here(onnx_file: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return bench(make_config(onnx=str(onnx_file), output_dir=str(out), **changes))


def test_a_lone_file_is_measured_and_recorded(
    onnx_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = bench_here(onnx_file, tmp_path / "out", scenario=Scenario.latency)
    assert read_record(tmp_path / "out") == record
    (entry,) = record["speed"]
    assert entry["engine"] == "onnxruntime"
    assert entry["tokens_per_s"] == pytest.approx(8 * entry["items_per_s"])
    assert entry["ratio_to"] == {"engine": "onnxruntime", "ratio": 1.0, "low": 1.0, "high": 1.0}
    assert entry["num_threads"] == 1
    assert entry["max_difference"] == 0.0
    assert record["size_bytes"]["onnx"] == onnx_file.stat().st_size
    assert record["run"]["parent"] is None
    heading = capsys.readouterr().out.splitlines()[1].split()
    assert heading.index("p50") < heading.index("items/s")  # scenario=latency


def test_model_and_metrics_come_from_the_record_beside_the_file(
    onnx_file: Path, tmp_path: Path
) -> None:
    source = new_record("export", make_config())
    source["run"]["parent"] = "the-training"
    source["model"] = {"name": "tiny", "layers": 3}
    source["metrics"] = {"accuracy": 90.0, "task": "demo", "num_examples": 10}
    source["size_bytes"] = {"checkpoint": 5}
    write_record(onnx_file.with_name("record.json"), source)
    record = bench_here(onnx_file, tmp_path / "out")
    assert record["run"]["parent"] == "the-training"
    assert record["run"]["id"] != source["run"]["id"]
    assert (record["model"], record["metrics"]) == (source["model"], source["metrics"])
    assert record["size_bytes"] == {"checkpoint": 5, "onnx": onnx_file.stat().st_size}


def test_the_record_of_the_same_run_is_extended(onnx_file: Path, tmp_path: Path) -> None:
    training = new_record("train", make_config())
    training["metrics"] = {"accuracy": 90.0, "task": "demo", "num_examples": 10}
    training["model"] = {"name": "tiny"}
    write_record(tmp_path / "out" / "record.json", training)
    exported = new_record("export", make_config())
    exported["run"]["parent"] = training["run"]["id"]
    write_record(onnx_file.with_name("record.json"), exported)
    bench_here(onnx_file, tmp_path / "out")
    bench_here(onnx_file, tmp_path / "out", seq_len=4)
    record = bench_here(onnx_file, tmp_path / "out")  # replaces the first measurement
    assert record["run"] == training["run"]
    assert record["metrics"] == training["metrics"]
    assert [entry["seq_len"] for entry in record["speed"]] == [4, 8]


def test_the_record_of_another_training_is_kept(onnx_file: Path, tmp_path: Path) -> None:
    training = tmp_path / "out" / "record.json"
    write_record(training, new_record("train", make_config()))
    before = training.read_bytes()
    write_record(onnx_file.with_name("record.json"), new_record("export", make_config()))
    with pytest.raises(InputError, match="made another model than the one measured"):
        bench_here(onnx_file, tmp_path / "out")
    assert training.read_bytes() == before


def test_speed_is_compared_with_a_baseline(
    onnx_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = bench_here(onnx_file, tmp_path / "out")
    baseline = tmp_path / "baseline.json"
    config = make_config(baseline=str(baseline), max_regression=0.2)
    (entry,) = record["speed"]
    speed = entry["items_per_s"]
    for earlier, falls in ((speed / 0.81, False), (speed / 0.79, True)):
        entry["items_per_s"] = earlier
        now = entry | {"items_per_s": speed}
        if falls:
            with pytest.raises(GateError, match=r"is 0\.79 times the baseline's"):
                compare(config, record, now)
        else:
            compare(config, record, now)
            assert "is 0.81 times the baseline's" in capsys.readouterr().out
    with pytest.raises(UsageError, match="no measurement of engine=onnxruntime, batch_size=3"):
        compare(config, record, entry | {"batch_size": 3})
