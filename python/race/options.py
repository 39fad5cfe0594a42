"""Sections of options: read from YAML, changed by `--set`, refused in the user's own terms.

Every problem of a file is shown at once, one line each: the key, what was expected, what
was received, and the remedy.
"""

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined

from race.errors import RaceError
from race.presets import preset


class Options(BaseModel):
    """A section of a config: an option that it does not have is an error."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)


AnyOptions = TypeVar("AnyOptions", bound=Options)


def unit(name: str) -> JsonDict:
    """`json_schema_extra` of an option that has a unit."""
    return {"unit": name}


# ---- reading -------------------------------------------------------------------------------------


def read_options(path: Path, kind: type[AnyOptions], changes: Sequence[str] = ()) -> AnyOptions:
    """Reads a YAML file into `kind`, a preset in its section `model` being expanded.

    Args:
        path: the file.
        kind: the section that the whole file is.
        changes: `KEY=VALUE` with a dotted key and a YAML value, applied to the file's content.

    Raises:
        RaceError: no such file, not YAML, or options that `kind` refuses: all of them.
    """
    return validated(read_raw(path, changes), kind, str(path))


def read_raw(path: Path, changes: Sequence[str] = ()) -> dict[str, Any]:
    """The content of a config before it is validated: changed, and its preset expanded."""
    raw = with_changes(read_yaml(path), changes)
    if raw.get("model") is not None:
        raw["model"] = expand_preset(raw["model"])
    return raw


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        RaceError: it cannot be read, is not YAML, or says one key twice.
    """
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise RaceError("no such file", where=path) from None
    except IsADirectoryError:
        raise RaceError("is a folder", where=path, expected="a YAML file") from None
    except UnicodeDecodeError as error:
        raise RaceError(
            f"is not UTF-8 text (byte {error.start})",
            where=path,
            remedy="save the file as UTF-8",
        ) from None
    except OSError as error:
        raise RaceError(f"cannot be read ({error.strerror})", where=path) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}, line {mark.line + 1}" if mark else path
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise RaceError(f"not valid YAML ({what})", where=place) from None
    if not isinstance(raw, dict):
        raise RaceError(
            "not a config",
            where=path,
            expected="sections of options",
            got="an empty file" if raw is None else f"{raw!r}"[:40],
        )
    return raw


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML that refuses a key said twice: the first value would be dropped in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = getattr(key_node, "value", None)
            if isinstance(key, str) and key in seen and key != "<<":
                raise yaml.MarkedYAMLError(
                    problem=f"{key} is given twice", problem_mark=key_node.start_mark
                )
            seen.add(key if isinstance(key, str) else None)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def with_changes(raw: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """The content of a config with `--set KEY=VALUE` applied, in order."""
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals or not key:
            raise RaceError("no value", where=f"--set {change}", expected="KEY=VALUE")
        try:
            value = yaml.load(text, _Loader)
        except yaml.YAMLError:
            raise RaceError("the value is not YAML", where=f"--set {change}") from None
        *sections, name = key.split(".")
        place = raw
        for section in sections:
            inner = place.get(section)
            if section == "model" and place is raw and isinstance(inner, str):
                inner = {"preset": inner}
            if inner is not None and not isinstance(inner, dict):
                raise RaceError(
                    f"{key.rpartition('.')[0]} has no options of its own",
                    where=f"--set {change}",
                    got=inner,
                )
            place[section] = place = dict(inner or {})
        place[name] = value
    return raw


def expand_preset(model: object) -> object:
    """`model: race-3bpa`, or `model: {preset: race-3bpa, n_members: 4}`, as plain options."""
    if isinstance(model, str):
        return preset(model)
    if isinstance(model, dict) and "preset" in model:
        changes = dict(model)
        return preset(changes.pop("preset")) | changes
    return model


def locate(name: Path, config_path: Path, key: str) -> Path:
    """Expands ${VARIABLES}; a relative path is taken from the config's folder."""
    text = os.path.expandvars(os.path.expanduser(str(name)))
    if "$" in text:
        raise RaceError(
            f"unset variable in {name}",
            where=f"{config_path}, key {key}",
            remedy="export it, e.g. RACE_DATA=/path/to/data",
        )
    try:
        return (config_path.parent / text).resolve()
    except RuntimeError:
        raise RaceError(
            "is a link that leads to itself", where=f"{config_path}, key {key}", got=name
        ) from None


# ---- refusing ------------------------------------------------------------------------------------


def validated(raw: Mapping[str, Any], kind: type[AnyOptions], where: str) -> AnyOptions:
    """`raw` as `kind`.

    Args:
        raw: options by name, sections being mappings.
        kind: what they should be.
        where: the file or command that they are from.

    Raises:
        RaceError: with one line for every option that is refused.
    """
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise RaceError.of([*_problems(error, kind, where)]) from None


def _problems(error: ValidationError, kind: type[Options], where: str) -> Iterator[RaceError]:
    """One for each key. A value that suits no member of a union fails once for every member."""
    by_key: dict[tuple[str | int, ...], list[ErrorDetails]] = {}
    for detail in error.errors():
        by_key.setdefault(_key(detail["loc"], kind), []).append(detail)
    for key, details in by_key.items():
        place = f"{where}, key {dotted(key)}" if key else where
        first = details[0]
        if first["type"] == "value_error":  # of our own validators: one line a problem
            for text in first["msg"].removeprefix("Value error, ").splitlines():
                yield RaceError(text, where=where if not key else place)
            continue
        if first["type"] == "extra_forbidden":
            yield _unknown(key, kind, place)
            continue
        if first["type"] == "missing":
            field = field_of(key, kind)
            meaning = (field.description if field else None) or "an option without a default"
            yield RaceError("is missing", where=place, expected=meaning)
            continue
        expected = " or ".join(dict.fromkeys(_expected(detail) for detail in details))
        yield RaceError(
            "cannot be used",
            where=place,
            expected=expected,
            got=repr(first["input"])[:80],
            remedy=f"`race config {dotted([k for k in key if isinstance(k, str)])}` explains it",
        )


def _unknown(key: tuple[str | int, ...], kind: type[Options], place: str) -> RaceError:
    section = section_of(key[:-1], kind)
    names = list(section.model_fields) if section else []
    if section is None:
        return RaceError("no such option", where=place)
    close = difflib.get_close_matches(str(key[-1]), names, n=1, cutoff=0.7)
    elsewhere = [
        dotted(other)
        for other, _ in walk(kind)
        if other[-1] == key[-1] and len(other) > 1 and other != key
    ]
    remedy = (
        f"write {elsewhere[0]}"
        if elsewhere and not (close and close[0] == key[-1])
        else f"did you mean {close[0]}?"
        if close
        else f"its section has {' '.join(names)}"
    )
    return RaceError("no such option", where=place, remedy=remedy)


def _expected(detail: ErrorDetails) -> str:
    """The values that an option takes, from pydantic's error."""
    context = detail.get("ctx", {})
    bounds = {
        "greater_than": "more than {gt}",
        "greater_than_equal": "at least {ge}",
        "less_than": "less than {lt}",
        "less_than_equal": "at most {le}",
        "literal_error": "{expected}",
        "too_short": "at least {min_length} entries",
        "too_long": "at most {max_length} entries",
        "int_from_float": "an integer",
        "finite_number": "a finite number",
        "path_type": "a path",
        "list_type": "a list",
        "none_required": "nothing",
        "model_type": "options by name",
        "model_attributes_type": "options by name",
    }
    if detail["type"] in bounds:
        return bounds[detail["type"]].format(**context)
    names = {"int": "an integer", "float": "a number", "bool": "true or false", "string": "text"}
    name = detail["type"].rsplit("_", 1)[0]
    return names.get(name, {"dict_type": "values by name"}.get(detail["type"], detail["msg"]))


def _key(loc: Sequence[str | int], kind: type[Options]) -> tuple[str | int, ...]:
    """The user's key of pydantic's location, which also names members of unions."""
    key: list[str | int] = []
    annotation: Any = kind
    for part in loc:
        members = _members(annotation)
        section = _section(annotation)
        if len(members) > 1:  # the name of a member, which is no key
            annotation = section if section and part == section.__name__ else None
        elif isinstance(part, int):
            key.append(part)
            annotation = next(iter(get_args(members[0])), None) if members else None
        elif section is not None:
            key.append(part)
            field = section.model_fields.get(part)
            annotation = field.annotation if field else None
    return tuple(key)


def _members(annotation: Any) -> list[Any]:
    """The members of a union without None; of anything else, itself."""
    if get_origin(annotation) in (Union, UnionType):
        return [member for member in get_args(annotation) if member is not NoneType]
    return [] if annotation is None else [annotation]


def dotted(key: Sequence[str | int]) -> str:
    """`data.train[0]` of ("data", "train", 0)."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


# ---- what there is -------------------------------------------------------------------------------


class Described(NamedTuple):
    """One option as a user reads it; `default` is None where a value must be given."""

    key: str
    type: str
    default: str | None
    unit: str
    meaning: str


def describe(kind: type[Options]) -> list[Described]:
    """Every option of `kind` and its sections, in the order of the classes."""
    return [
        Described(
            dotted(key),
            type_of(field),
            default_of(field),
            unit_of(field),
            " ".join((field.description or "").split()),
        )
        for key, field in walk(kind)
        if _section(field.annotation) is None
    ]


def walk(
    kind: type[Options], at: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    """All fields with their keys, a section before its options."""
    for name, field in kind.model_fields.items():
        yield (*at, name), field
        section = _section(field.annotation)
        if section is not None:
            yield from walk(section, (*at, name))


def section_of(key: Sequence[str | int], kind: type[Options]) -> type[Options] | None:
    """The class of the section that `key` names."""
    section: type[Options] | None = kind
    for part in key:
        field = section.model_fields.get(str(part)) if section else None
        section = _section(field.annotation) if field else None
    return section


def field_of(key: Sequence[str | int], kind: type[Options]) -> FieldInfo | None:
    """The option that `key` names."""
    section = section_of(key[:-1], kind) if key else None
    return section.model_fields.get(str(key[-1])) if section else None


def type_of(field: FieldInfo) -> str:
    """`number > 0`, `list of text`, `mse | nll_e`, ..."""
    limits = []
    for rule in field.metadata:
        for name, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<=")):
            if getattr(rule, name, None) is not None:
                limits.append(f"{sign} {getattr(rule, name)}")
    return " ".join([_type_name(field.annotation), " and ".join(limits)]).strip()


def unit_of(field: FieldInfo) -> str:
    """The unit of an option; empty for one without."""
    extra = field.json_schema_extra
    return str(extra.get("unit", "")) if isinstance(extra, dict) else ""


def _type_name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (Union, UnionType):
        return " | ".join(_type_name(a) for a in arguments if a is not NoneType)
    if origin is list:
        return f"list of {_type_name(arguments[0])}"
    if origin is dict:
        return f"{_type_name(arguments[1])} by {_type_name(arguments[0])}"
    names = {int: "integer", float: "number", str: "text", bool: "true | false", Path: "path"}
    return names.get(annotation, "options" if _section(annotation) else "any value")


def default_of(field: FieldInfo) -> str | None:
    """As YAML has it; None: a value must be given."""
    if field.is_required():
        return None
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined or value is None:
        return "-"
    plain = str(value) if isinstance(value, Path) else value
    text: str = yaml.safe_dump(plain, default_flow_style=True)
    return text.removesuffix("...\n").strip()


def _section(annotation: Any) -> type[Options] | None:
    """The class of a section among the members of an annotation."""
    return next(
        (m for m in _members(annotation) if isinstance(m, type) and issubclass(m, Options)), None
    )
