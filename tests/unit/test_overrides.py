"""Arguments on their way to Hydra, and what is nearest to a wrong name."""

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from toolkit.errors import nearest
from toolkit.overrides import rewrite


def test_trainer_arguments_are_added_or_replaced_only_where_there_is_a_trainer() -> None:
    assert rewrite("train", ["trainer.x=1", "trainer=smoke", "~trainer.y"]) == [
        "++trainer.x=1",
        "trainer=smoke",
        "~trainer.y",
    ]
    assert rewrite("bench", ["trainer.x=1"]) == ["trainer.x=1"]


@pytest.mark.parametrize(
    ("args", "paths"),
    [
        (["a", "b c"], ["a", "b c"]),
        (["a", "output=1", "-cn", "other", "b"], ["a", "b"]),
        (["it's", "--cfg", "job", 'say "x"'], ["it's", 'say "x"']),
        (["back\\slash", "${seed}", "a,b", "[x]"], ["back\\slash", "\\${seed}", "a,b", "[x]"]),
        (["seed=1", "-m"], None),
    ],
)
def test_positional_paths_of_report_survive_hydras_grammar(
    args: list[str], paths: list[str] | None
) -> None:
    rewritten = rewrite("report", args)
    if paths is None:
        assert rewritten == args
    else:
        override = OverridesParser.create().parse_override(rewritten[-1])
        assert override.key_or_group == "paths"
        given = override.value()
        assert isinstance(given, list)
        assert [str(path) for path in given] == paths


def test_a_folder_named_like_an_override_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sparsity=prune80").mkdir()
    assert rewrite("report", ["sparsity=prune80", "select=x"]) == [
        "select=x",
        "paths=['sparsity=prune80']",
    ]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("select=f1>=87,latency_p99_ms<=10", "f1>=87,latency_p99_ms<=10"),
        ("select='f1>=87'", "f1>=87"),
        ("select=null", None),
    ],
)
def test_conditions_of_select_need_no_second_quotes(given: str, meant: str | None) -> None:
    override = OverridesParser.create().parse_override(rewrite("report", [given])[0])
    value = override.value()
    assert (None if value is None else str(getattr(value, "text", value))) == meant


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("trian", "did you mean 'train'?"),
        ("sparsity.final_sparsty", "did you mean 'sparsity.final_sparsity'?"),
        ("path", "did you mean 'model.path'?"),
        ("zzzz", "valid are train"),
    ],
)
def test_nearest_names(word: str, says: str) -> None:
    assert nearest(word, ["train", "sparsity.final_sparsity", "model.path"]) == says
