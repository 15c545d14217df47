"""From a recipe's text to modifiers: where they may stand, variables, lines, and hostile files."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from support.recipes import EPOCHS, MAGNITUDE, recipe

from toolkit.errors import InputError
from toolkit.recipes.reading import plain, read_modifiers, read_values

YAML = """\
# a comment
epochs: &epochs 12
share: 0.25
start: eval(stop * share)
stop: eval(epochs - 4)
names: [a, b]
word: linear
training_modifiers:
  - !EpochRangeModifier
    start_epoch: 0.0
    end_epoch: *epochs
  - !SomeModifier
    start_epoch: eval(start)
    names: eval(names)
    deep: {x: [eval(2 * share)], y: eval(word)}
    tiny: 1e-7
    text: '5'
    ratio: 2:4
    off: No
    nothing: ~
empty_modifiers:
"""


def fields(text: str, file: str = "x.yaml") -> list[tuple[str, int, dict[str, Any]]]:
    return [
        (each.kind, each.line, {key: plain(value.data) for key, value in each.fields.items()})
        for each in read_modifiers(text, file)
    ]


def test_variables_anchors_and_lines() -> None:
    assert fields(YAML) == [
        ("EpochRangeModifier", 9, {"start_epoch": 0.0, "end_epoch": 12}),
        (
            "SomeModifier",
            12,
            {
                "start_epoch": 2.0,
                "names": ["a", "b"],
                "deep": {"x": [0.5], "y": "linear"},
                "tiny": 1e-7,
                "text": "5",
                "ratio": "2:4",
                "off": False,
                "nothing": None,
            },
        ),
    ]


@pytest.mark.parametrize("fence", ["---", "+++", "--- "])
def test_front_matter_keeps_the_lines_of_the_file(fence: str) -> None:
    before = "<!-- a\nlicence -->\n\n"
    text = f"{before}{fence}\n{YAML}{fence}\n\n# A title\n\n---\n- !Not: [a\n"
    moved = [(kind, line + 4, values) for kind, line, values in fields(YAML)]
    assert fields(text, "recipe.md") == moved
    assert fields(text.replace("\n", "\r\n"), "recipe.MD") == moved
    assert fields(f"---\n{YAML}---\n") == [(k, line + 1, v) for k, line, v in fields(YAML)]
    assert fields(f"# a comment\n---\n{YAML}")[0][1] == 11


def test_stages_see_variables_of_their_own_first_and_count_epochs_from_the_start() -> None:
    text = """\
shared: 3
epochs: 100
first_stage:
  epochs: 4
  pruning_modifiers:
    - !A
        end_epoch: eval(epochs + shared)
second_stage:
  first_modifiers:
    - !B
        start_epoch: eval(epochs)
"""
    assert fields(text) == [("A", 6, {"end_epoch": 7}), ("B", 10, {"start_epoch": 100})]


def test_other_spellings() -> None:
    assert fields("- !pytorch.A\n  x: 1\n- !B:\n  y: 2\n- !C\n") == [
        ("A", 1, {"x": 1}),
        ("B", 3, {"y": 2}),
        ("C", 5, {}),
    ]
    assert fields("n: 1\nn: 1\n" + recipe(EPOCHS))[0][0] == "EpochRangeModifier"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is no recipe"),
        ("hello", "is no recipe: expected lists of modifiers, got 'hello'"),
        ("a: 1\n", "has no list of modifiers"),
        ("modifiers:\n  A:\n    start: 0\n", "line 2: modifiers must list modifiers.*SparseML 1.6"),
        ("modifiers:\n  - start_epoch: 1\n", "line 2: modifiers must list modifiers"),
        ("things:\n  - !A\n    x: 1\n", "line 2: 'things' holds modifiers"),
        (recipe(("A", {"x": "eval(y)"})), "line 3: 'eval.y.': 'y' is no variable"),
        ("y: [1]\n" + recipe(("A", {"x": "eval(y + 1)"})), "line 4.*'y' is no number but a list"),
        ("y: eval(z)\nz: eval(y)\n" + recipe(("A", {"x": "eval(y)"})), "refers to itself"),
        ("y: 1\ny: 2\n", "line 2: 'y' stands twice, first in line 1"),
        ("y: *z\n", "line 1: .z refers to nothing"),
        ("y: &z [*z]\n", "line 1: .z refers to nothing"),
        ("y: !!python/object/apply:os.system [x]\n", "line 1: the tag .* is no modifier"),
        ("a: 1\n---\nb: 2\n---\n", "line 2: a second document"),
        ("? [a]\n: 1\n", "line 1: a key must be"),
        ("a: [1\nb: ]2", "line 2: no YAML"),
        ("a: \x00", "no YAML: special characters"),
    ],
)
def test_what_is_no_recipe_is_refused_with_its_line(text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=f"^x.yaml.*{sentence}"):
        read_modifiers(text, "x.yaml")


def test_markdown_needs_front_matter() -> None:
    with pytest.raises(InputError, match=r"recipe\.md has no front matter"):
        read_modifiers("# Title\n---\n", "recipe.md")


def test_overlays_are_read_within_the_same_limits() -> None:
    assert read_values("a: {b: [1, 2.5, x]}\n", "x.yaml") == {"a": {"b": [1, 2.5, "x"]}}
    with pytest.raises(InputError, match="more than 16 levels"):
        read_values("a: " + "[" * 20, "x.yaml")


BOMB = "a0: &a0 [x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 20)
)
END = "modifiers:\n  - !EpochRangeModifier\n    start_epoch: 0\n    end_epoch: "


def pruned(params: str) -> str:
    return recipe(("GMPruningModifier", MAGNITUDE | {"params": params}))


HOSTILE = {
    "levels": "[" * 190_000,
    "mappings": "{a: " * 40_000,
    "blocks": "".join(" " * i + "-\n" for i in range(600)),
    "aliases": BOMB + pruned("*a19"),
    "aliases by name": BOMB + pruned("eval(a19)"),
    "keys": "".join(f"k{i}: &k{i} 1\n" for i in range(10_500)),
    "values": "a: [" + "1," * 90_000 + "]",
    "a long word": "a: " + "x" * 190_000,
    "megabytes": "# " + "x" * 5_000_000,
    "variables": "".join(f"v{i}: eval(v{i + 1} + v{i + 1})\n" for i in range(400))
    + END
    + "eval(v0)",
    "many variables": "".join(f"v{i}: eval({'+'.join([f'v{i + 1}'] * 40)})\n" for i in range(7))
    + "v7: 1\n"
    + END
    + "eval(v0)\n",
    "powers": END + "eval(9**9**9**9)",
    "digits": END + "9" * 1900,
    "no number": END + "[1]",
    "code": END + "eval(__import__('os').system('touch pwned'))",
    "object": "modifiers:\n  - !!python/object/apply:os.system ['touch pwned']\n",
    "slow expression": pruned("['re:(.+)+z$', 're:(.*)*(.*)*(.*)*Z', 're:((a|.)*)*y']"),
    "expressions": pruned("[" + ",".join(f"'re:.*{i}'" for i in range(9000)) + "]"),
    "large expression": pruned("['re:((((a{9999}){9999}){9999}){9999})']"),
    "parentheses": pruned("['re:" + "(" * 190 + "']"),
    "ranges": recipe(
        (
            "LearningRateFunctionModifier",
            {
                "lr_func": "cyclic_linear",
                "start_epoch": 0,
                "end_epoch": 1000000,
                "cycle_epochs": 1e-9,
                "init_lr": 1e-4,
                "final_lr": 0,
            },
        )
    ),
    "binary": "\x01\x02PK\x03\x04",
}
# Each in at most 10 s of processor time (0 to 2 were measured), all in one process with 500 MB.
SCRIPT = """
import json, resource, sys, time
from toolkit.errors import InputError
from toolkit.recipes.conversion import convert
resource.setrlimit(resource.RLIMIT_AS, (500 << 20, 500 << 20))
for name, text in json.load(sys.stdin).items():
    start = time.process_time()
    try:
        convert(text, "x.yaml")
    except InputError as error:
        assert len(str(error)) < 700, name
        print(name, "|", error)
    assert time.process_time() - start < 10, name
"""


@pytest.mark.slow
def test_hostile_files_get_one_sentence_in_bounded_time_and_memory(tmp_path: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps(HOSTILE),
        cwd=tmp_path,
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [line.split(" | ")[0] for line in done.stdout.splitlines()] == list(HOSTILE)
    assert not list(tmp_path.iterdir())
