"""Every model of a request, with values that nobody has thought of: made from its schema, and from nothing."""

import copy
import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from jobs import spec as module
from jobs.spec import JobSpec
from tests.jobs.test_spec import FULL

PARTS = [
    part
    for part in vars(module).values()
    if isinstance(part, type)
    and issubclass(part, BaseModel)
    and part.__module__ == module.__name__
    and part.model_fields
]
"""All models of the module, also those to come."""

repeatable = settings(derandomize=True, database=None, deadline=None, max_examples=150)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
"""JSON, and more: NaN, NUL and half surrogate pairs."""


def allowed(schema: dict[str, Any], root: dict[str, Any]) -> st.SearchStrategy[Any]:
    """What a JSON schema allows, as far as pydantic writes such schemas."""
    if "$ref" in schema:
        return allowed(root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    if "anyOf" in schema:
        return st.one_of([allowed(kind, root) for kind in schema["anyOf"]])
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum", [schema.get("const")]))
    match schema.get("type"):
        case "null":
            return st.none()
        case "boolean":
            return st.booleans()
        case "integer":
            return st.integers(*limits(schema, step=1))
        case "number":
            return st.floats(*limits(schema), allow_nan=False, allow_infinity=False)
        case "string":
            pattern = schema.get("pattern")
            texts = st.from_regex(pattern, fullmatch=True) if pattern else st.text()
            least, most = schema.get("minLength", 0), schema.get("maxLength", 2**20)
            return texts.filter(lambda text: least <= len(text) <= most and text.isprintable())
        case "array":
            items = allowed(schema["items"], root)
            return st.lists(items, min_size=schema.get("minItems", 0), max_size=min(schema.get("maxItems", 4), 8))
        case "object" if "properties" in schema:
            fields = {name: allowed(field, root) for name, field in schema["properties"].items()}
            required = {name: fields.pop(name) for name in schema.get("required", ())}
            return st.fixed_dictionaries(required, optional=fields)
        case "object":
            [(pattern, values)] = schema["patternProperties"].items()
            return st.dictionaries(st.from_regex(pattern, fullmatch=True), allowed(values, root), max_size=3)
    raise AssertionError(f"pydantic has learned to write {schema}")


def limits(schema: dict[str, Any], step: float = 0) -> tuple[Any, Any]:
    """The least and the greatest number that the schema allows."""
    least, most = schema.get("minimum"), schema.get("maximum")
    if "exclusiveMinimum" in schema:
        least = schema["exclusiveMinimum"] + step if step else math.nextafter(schema["exclusiveMinimum"], math.inf)
    if "exclusiveMaximum" in schema:
        most = schema["exclusiveMaximum"] - step if step else math.nextafter(schema["exclusiveMaximum"], -math.inf)
    return least, most


def numbers() -> Iterator[tuple[type[BaseModel], str, Any, bool]]:
    """Each limit of each number of each model: a value on either side of it, and whether it is allowed."""
    for part in PARTS:
        for name, field in part.model_json_schema()["properties"].items():
            for schema in field.get("anyOf", [field]):
                if schema.get("type") not in ("integer", "number"):
                    continue
                whole = schema["type"] == "integer"
                least, most = limits(schema, step=1 if whole else 0)
                assert least is not None, f"{part.__name__}.{name} has no lower limit"
                assert most is not None, f"{part.__name__}.{name} has no upper limit"
                below = least - 1 if whole else math.nextafter(least, -math.inf)
                above = most + 1 if whole else math.nextafter(most, math.inf)
                yield from ((part, name, value, True) for value in (least, most))
                yield from ((part, name, value, False) for value in (below, above))


def with_one_target(request: dict[str, Any]) -> dict[str, Any]:
    """Of sparsity, layers and target the first that is given; layers if none is."""
    targets = {name: request[name] for name in ("sparsity", "layers", "target") if request.get(name) is not None}
    name, value = next(iter(targets.items()), ("layers", 4))
    return request | {"sparsity": None, "layers": None, "target": None, name: value}


def refusal_of(part: type[BaseModel], value: Any) -> ValidationError | None:
    """Why the model refuses the value; whatever else it raises is a mistake."""
    try:
        part.model_validate(value)
    except ValidationError as error:
        return error
    return None


@pytest.mark.parametrize(
    ("part", "name", "value", "taken"), list(numbers()), ids=lambda value: getattr(value, "__name__", str(value))
)
def test_every_number_has_limits_and_keeps_them(part: type[BaseModel], name: str, value: Any, taken: bool) -> None:
    refusal = refusal_of(part, {name: value})
    blamed = {error["loc"][0] for error in refusal.errors() if error["loc"]} if refusal else set()
    assert (name not in blamed) is taken


@pytest.mark.parametrize("part", PARTS)
def test_anything_is_taken_or_refused(part: type[BaseModel]) -> None:
    @repeatable
    @given(anything)
    def check(value: Any) -> None:
        refusal = refusal_of(part, value)
        if refusal is not None:
            assert all(error["msg"] for error in refusal.errors())

    check()


@pytest.mark.parametrize("part", PARTS)
def test_what_a_schema_allows_is_taken(part: type[BaseModel]) -> None:
    """Unless a check of the model's own says more than a schema can."""
    schema = part.model_json_schema()
    own = part.__pydantic_decorators__
    has_checks = part is JobSpec or own.field_validators or own.model_validators
    values = allowed(schema, schema)

    @repeatable
    @given(values.map(with_one_target) if part is JobSpec else values)
    def check(value: Any) -> None:
        refusal = refusal_of(part, value)
        if refusal is None:
            made = part.model_validate(value).model_dump(mode="json")
            assert part.model_validate(json.loads(json.dumps(made, allow_nan=False))).model_dump(mode="json") == made
        else:
            assert has_checks, refusal
            assert {error["type"] for error in refusal.errors()} == {"value_error"}, refusal

    check()


@repeatable
@given(st.data())
def test_a_request_with_anything_in_one_place(data: st.DataObject) -> None:
    """It is refused with that place's name, or goes round from request to row and back unchanged."""
    request = copy.deepcopy(FULL)
    place, path = request, []
    while True:
        key = data.draw(st.sampled_from(sorted(place)))
        path.append(key)
        if not isinstance(place[key], dict) or data.draw(st.booleans()):
            break
        place = place[key]
        if not place:
            return
    place[key] = data.draw(anything)
    refusal = refusal_of(JobSpec, request)
    if refusal is not None:
        for error in refusal.errors():
            location = [str(part) for part in error["loc"]]
            assert not location or path[: len(location)] == location[: len(path)], (path, location)
    else:
        stored = JobSpec.model_validate(request).as_request()
        assert JobSpec.model_validate(json.loads(json.dumps(stored, allow_nan=False))).as_request() == stored


@repeatable
@given(st.text(st.characters(codec=None)) | st.from_regex(r"https?://[\w.:\[\]@%-]+(/\S*)?", fullmatch=True))
@example("https://[")
@example("https://[::1%25eth0]:x/")
@example("https://1.2.3.4.5/")
def test_any_url_is_taken_or_refused(url: str) -> None:
    refusal = refusal_of(module.WebhookSpec, {"url": url})
    if refusal is not None:
        [error] = refusal.errors()
        assert error["loc"] == ("url",)
