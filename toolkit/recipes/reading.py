"""A recipe's text → its modifiers, with their lines, variables put in and `eval(…)` worked out.

YAML is read event by event: what is too deep, too much or no recipe ends the reading there, before
it costs time or memory, and no tag ever makes an object. An alias refers to what its anchor holds;
what aliases multiply is counted when it is looked at.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import yaml

from toolkit.errors import InputError
from toolkit.recipes.arithmetic import evaluate

# Published recipes have up to 30,000 characters, 700 values and 6 levels.
MAX_TEXT = 200_000  # characters of YAML
MAX_VALUES = 20_000  # looked at, aliases counted each time
MAX_DEPTH = 16
MAX_WORD = 2000  # characters of one value
MAX_CHAIN = 8  # variables that refer to one another
FENCES = ("---", "+++")  # around front matter
NULLS = ("", "~", "null")
TRUE, FALSE = ("true", "yes", "on"), ("false", "no", "off")  # of YAML 1.1, in any case
NUMBER = re.compile(r"[-+]?(\d{1,40}(\.\d{0,40})?|\.\d{1,40})(e[-+]?\d{1,3})?", re.IGNORECASE)
CORE = "tag:yaml.org,2002:"
CORE_TAGS = ("str", "int", "float", "bool", "null", "seq", "map")
REQUIRED: Any = object()


@dataclass(frozen=True)
class Value:
    """Something in the file.

    Attributes:
        data: None, bool, int, float, str, list[Value] or dict[str, Value].
        line: Where it begins, from 1.
        tag: `!Name` in front of it, without the mark; empty if there is none.
    """

    data: Any
    line: int
    tag: str = ""


class Modifier:
    """One modifier of a recipe. Its fields are taken one by one; `finish` refuses those left.

    Args:
        file: Name of the recipe, for errors.
        kind: Such as `GMPruningModifier`.
        line: Where it begins.
        fields: Evaluated.
    """

    def __init__(self, file: str, kind: str, line: int, fields: Mapping[str, Value]) -> None:
        self.file, self.kind, self.line = file, kind, line
        self.fields = dict(fields)
        self.taken: set[str] = set()

    def fault(self, what: str, key: str = "") -> InputError:
        """Make the error that says what is wrong with the modifier, or with one of its fields."""
        line = self.fields[key].line if key in self.fields else self.line
        return InputError(f"{self.file}, line {line}: {self.kind}: {key}{key and ' '}{what}")

    def take(self, key: str, default: Any = REQUIRED) -> Any:
        """Return a field's data, or `default` where it is absent.

        Raises:
            InputError: It is absent, and there is no default.
        """
        self.taken.add(key)
        if key in self.fields:
            return self.fields[key].data
        if default is REQUIRED:
            raise self.fault(f"needs the field {key}")
        return default

    def number(
        self, key: str, default: Any = REQUIRED, least: float = -1e15, most: float = 1e15
    ) -> Any:
        """Return a number, an int where the file has one; SparseML takes them as text, too.

        Raises:
            InputError: It is none, or out of its range.
        """
        value = self.take(key, default)
        if value is default and key not in self.fields:
            return value
        number = _resolve_scalar(value) if isinstance(value, str) else value
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise self.fault(f"must be a number; got {show(value)}", key)
        if not least <= number <= most:
            raise self.fault(f"must be from {least:g} to {most:g}; got {number:g}", key)
        return number

    def flag(self, key: str, default: bool) -> bool:
        """Return a truth value, which recipes also write as 0 and 1.

        Raises:
            InputError: It is none.
        """
        value = self.take(key, default)
        if value not in (True, False):
            raise self.fault(f"must be True or False; got {show(value)}", key)
        return bool(value)

    def one_of(self, key: str, valid: tuple[str, ...], default: Any = REQUIRED) -> str:
        """Return one of several words.

        Raises:
            InputError: It is another.
        """
        value = self.take(key, default)
        if value not in valid:
            raise self.fault(f"must be {' or '.join(valid)}; got {show(value)}", key)
        return str(value)

    def texts(self, key: str, default: Any = REQUIRED) -> list[str]:
        """Return a list of texts; a single text is a list of one.

        Raises:
            InputError: It is none.
        """
        value = self.take(key, default)
        if value is default and key not in self.fields:
            return list(value)
        values = [each.data for each in value] if isinstance(value, list) else [value]
        if not all(isinstance(each, str) for each in values):
            raise self.fault(f"must be a list of names; got {show(value)}", key)
        return values

    def only(self, key: str, valid: tuple[Any, ...], why: str) -> None:
        """Take a field that may say only what we do anyway.

        Raises:
            InputError: It says something else; `why` that is not carried over.
        """
        value = self.take(key, valid[0])
        data = plain(value)
        if not any(data == each and type(data) is type(each) for each in valid):
            raise self.fault(f"{show(value)} cannot be carried over: {why}", key)

    def ignore(self, *keys: str) -> None:
        """Take fields that change nothing of what is trained, such as those of logging."""
        self.taken.update(keys)

    def finish(self) -> None:
        """Refuse what nobody has taken.

        Raises:
            InputError: A field is left.
        """
        for key in self.fields:
            if key not in self.taken:
                raise self.fault("is a field that cannot be carried over", key)


def read_modifiers(text: str, file: str) -> list[Modifier]:
    """Read a recipe: YAML, or Markdown with YAML in front.

    Variables are top-level values; those of a stage (a mapping that has lists of modifiers) count
    in it before them. Epochs count from the start of training in every stage, as SparseML has it:
    where it joins recipes, it writes the later one's epochs moved.

    Args:
        text: Of the file.
        file: Its name; one that ends in `.md` must have front matter.

    Returns:
        The modifiers in the order of the file, their fields evaluated.

    Raises:
        InputError: It is none, or too large, or an expression cannot be worked out.
    """
    root = _parse(front_matter(text, file), file)
    if isinstance(root.data, list):  # modifiers alone, without a name
        root = Value({"modifiers": root}, root.line)
    if not isinstance(root.data, dict):
        raise InputError(f"{file} is no recipe: expected lists of modifiers, got {show(root.data)}")
    steps = iter(range(MAX_VALUES))
    found = list(_modifiers(root.data, root.data, file, steps))
    if not found:
        raise InputError(f"{file} is no recipe: it has no list of modifiers (!GMPruningModifier …)")
    return found


def read_values(text: str, file: str) -> dict[str, Any]:
    """Read plain YAML, within the same limits: a mapping of mappings, lists, words and numbers.

    Raises:
        InputError: It is anything else.
    """
    root = _parse(text, file)
    if len(text) > MAX_TEXT or not isinstance(root.data, dict):
        raise InputError(f"{file} is no recipe: expected at most {MAX_TEXT} characters of mappings")
    made: dict[str, Any] = plain(_resolve(root, {}, file, iter(range(MAX_VALUES)), ()).data)
    return made


def front_matter(text: str, file: str) -> str:
    """Cut the YAML out of a recipe, with empty lines in front, so that lines keep their numbers.

    Raises:
        InputError: It is a Markdown file without front matter, or too long.
    """
    lines = text.split("\n")
    fences = [number for number, line in enumerate(lines) if line.strip() in FENCES][:2]
    is_markdown = file.lower().endswith(".md")
    if is_markdown and len(fences) < 2:
        raise InputError(f"{file} has no front matter: expected YAML between two lines of ---")
    starts = all(not line.strip() or line.startswith("#") for line in lines[: (*fences, 0)[0]])
    if is_markdown or (len(fences) == 2 and starts):
        lines = [""] * (fences[0] + 1) + lines[fences[0] + 1 : fences[1]]
    found = "\n".join(lines)
    if len(found) > MAX_TEXT:
        raise InputError(f"{file} has {len(found)} characters of YAML, more than {MAX_TEXT}")
    return found


def plain(data: Any) -> Any:
    """Turn a field's data into what YAML would have made of it."""
    if isinstance(data, list):
        return [plain(each.data) for each in data]
    if isinstance(data, dict):
        return {key: plain(each.data) for key, each in data.items()}
    return data


def show(data: Any) -> str:
    """Say in a few words what a value is."""
    if isinstance(data, dict):
        return "a mapping"
    if isinstance(data, list):
        return f"a list of {len(data)}"
    text = repr(data)
    return text if len(text) <= 60 else f"{text[:60]}…"


@dataclass
class _Open:
    """A list or mapping whose end has not come yet."""

    value: Value
    anchor: str | None
    key: str | None = None


def _parse(text: str, file: str) -> Value:
    """Build the values of the one document; nothing of it is recursive."""
    anchors: dict[str, Value] = {}
    root = Value(None, 1)
    stack: list[_Open] = []
    count = documents = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            line = event.start_mark.line + 1
            count += 1
            if count > MAX_VALUES:
                raise InputError(f"{file}, line {line}: more than {MAX_VALUES} values")
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise InputError(f"{file}, line {line}: a second document; expected one")
            elif isinstance(event, yaml.SequenceStartEvent | yaml.MappingStartEvent):
                if len(stack) == MAX_DEPTH:
                    raise InputError(f"{file}, line {line}: more than {MAX_DEPTH} levels")
                data: Any = [] if isinstance(event, yaml.SequenceStartEvent) else {}
                stack.append(_Open(Value(data, line, _tag(event.tag, line, file)), event.anchor))
            else:
                if isinstance(event, yaml.SequenceEndEvent | yaml.MappingEndEvent):
                    done = stack.pop()
                    value, anchor = done.value, done.anchor
                elif isinstance(event, yaml.ScalarEvent):
                    if len(event.value) > MAX_WORD:
                        raise InputError(f"{file}, line {line}: a value of over {MAX_WORD} letters")
                    if stack and isinstance(stack[-1].value.data, dict) and stack[-1].key is None:
                        stack[-1].key = event.value
                        continue
                    value, anchor = _scalar(event, line, file), event.anchor
                elif isinstance(event, yaml.AliasEvent):
                    if event.anchor not in anchors:
                        raise InputError(f"{file}, line {line}: *{event.anchor} refers to nothing")
                    value, anchor = replace(anchors[event.anchor], line=line), None
                else:
                    continue
                if anchor:
                    anchors[anchor] = value
                if stack:
                    _add(stack[-1], value, file)
                else:
                    root = value
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        what = getattr(error, "problem", None) or getattr(error, "reason", None) or "damaged"
        raise InputError(f"{file}{place}: no YAML: {what}") from None
    return root


def _add(parent: _Open, value: Value, file: str) -> None:
    container = parent.value.data
    if isinstance(container, list):
        container.append(value)
        return
    key, parent.key = parent.key, None
    if key is None:
        raise InputError(f"{file}, line {value.line}: a key must be a word or a number")
    before = container.get(key)
    is_same = before is not None and not isinstance(value.data, list | dict)
    if before is not None and not (is_same and before.data == value.data):
        raise InputError(
            f"{file}, line {value.line}: '{key}' stands twice, first in line {before.line}, with "
            "another value"
        )
    container[key] = value


def _tag(tag: str | None, line: int, file: str) -> str:
    if tag is None or (tag.startswith(CORE) and tag.removeprefix(CORE) in CORE_TAGS):
        return ""
    if not tag.startswith("!"):
        raise InputError(f"{file}, line {line}: the tag {tag} is no modifier")
    return tag.removeprefix("!").removeprefix("pytorch.").rstrip(":")


def _scalar(event: Any, line: int, file: str) -> Value:
    tag = _tag(event.tag, line, file)
    if tag:
        return Value({}, line, tag) if event.value == "" else Value(event.value, line, tag)
    return Value(_resolve_scalar(event.value) if event.implicit[0] else event.value, line)


def _resolve_scalar(text: str) -> Any:
    """Tell numbers and truth values from words; 2:4 is none, though YAML 1.1 has 124 for it."""
    word = text.lower()
    if word in NULLS:
        return None
    if word in TRUE + FALSE:
        return word in TRUE
    if NUMBER.fullmatch(text):
        number = float(text)
        return int(text) if text.lstrip("+-").isdigit() else number
    return text


def _modifiers(
    container: Mapping[str, Value], scope: Mapping[str, Value], file: str, steps: Iterator[int]
) -> Iterator[Modifier]:
    for key, value in container.items():
        if "modifiers" in key:
            if value.data is None:
                continue
            if not isinstance(value.data, list):
                raise InputError(
                    f"{file}, line {value.line}: {key} must list modifiers, such as "
                    f"`- !GMPruningModifier`; got {show(value.data)} (recipes of SparseML 1.6 and "
                    "later, with modifiers as keys, are of another kind)"
                )
            for each in value.data:
                if not each.tag or not isinstance(each.data, dict):
                    raise InputError(
                        f"{file}, line {each.line}: {key} must list modifiers, such as "
                        f"`- !GMPruningModifier`; got {show(each.data)}"
                    )
                fields = {
                    name: _resolve(field, scope, file, steps, ())
                    for name, field in each.data.items()
                }
                yield Modifier(file, each.tag, each.line, fields)
        elif isinstance(value.data, dict) and any("modifiers" in name for name in value.data):
            yield from _modifiers(value.data, {**scope, **value.data}, file, steps)
        elif isinstance(value.data, list) and any(each.tag for each in value.data):
            raise InputError(
                f"{file}, line {value.line}: '{key}' holds modifiers, but SparseML runs only those "
                "in lists whose name contains 'modifiers'"
            )


def _resolve(
    value: Value,
    scope: Mapping[str, Value],
    file: str,
    steps: Iterator[int],
    names: tuple[str, ...],
) -> Value:
    """Put in variables: `eval(…)` of one name is whatever it stands for, else a number."""
    if next(steps, None) is None:
        raise InputError(f"{file}, line {value.line}: over {MAX_VALUES} values with all put in")
    data = value.data
    if isinstance(data, list):
        return replace(value, data=[_resolve(each, scope, file, steps, names) for each in data])
    if isinstance(data, dict):
        fields = {key: _resolve(each, scope, file, steps, names) for key, each in data.items()}
        return replace(value, data=fields)
    if not (isinstance(data, str) and data.startswith("eval(") and data.endswith(")")):
        return value
    expression = data[len("eval(") : -1].strip()

    def look_up(name: str) -> Any:
        if name not in scope:
            raise ValueError(f"'{name}' is no variable of the recipe")
        if name in names or len(names) == MAX_CHAIN:
            raise ValueError(f"'{name}' refers to itself, or to too many others in turn")
        return _resolve(scope[name], scope, file, steps, (*names, name)).data

    def number(name: str) -> float:
        found = look_up(name)
        found = _resolve_scalar(found) if isinstance(found, str) else found
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise ValueError(f"'{name}' is no number but {show(found)}")
        return found

    try:
        made: Any = look_up(expression) if expression in scope else evaluate(expression, number)
        made = float(f"{made:.12g}") if isinstance(made, float) else made  # 0.3 + 0.6 is 0.9
    except ValueError as error:
        raise InputError(f"{file}, line {value.line}: {show(data)}: {error}") from None
    return replace(value, data=made)
