"""The page at /docs, on which the API can be read and tried. It uses only our own files.

It is made from the OpenAPI document, loads nothing from elsewhere, and its only script is docs.js, which sends trial
requests. Knows no route and no model.
"""

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Response

FOLDER = Path(__file__).parent
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
FILE = "application/octet-stream"  # media type of a form's field that is a file
BOUNDS = {
    "minimum": "at least {:,}",
    "maximum": "at most {:,}",
    "maxLength": "at most {:,} characters",
    "minItems": "at least {:,} of them",
    "maxItems": "at most {:,} of them",
}

Schema = Mapping[str, Any]

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><link rel="stylesheet" href="docs/docs.css"><script type="module" src="docs/docs.js"></script>
</head><body><header><h1>{title}</h1><p>{about}</p>
<p><label>Token <input id="token" type="password" autocomplete="off"></label> is stored only in this page, while it is
open. For programs: <a href="openapi.json">openapi.json</a></p><nav>{links}</nav></header>
<main>{operations}<section><h2>Shapes</h2>{shapes}</section></main></body></html>
"""


def add_docs(app: FastAPI) -> None:
    """Serve the page, its script and its style sheet."""
    _add(app, "/docs", page_of(app.openapi()), "text/html")
    for name, media_type in (("docs.css", "text/css"), ("docs.js", "text/javascript")):
        _add(app, f"/docs/{name}", (FOLDER / name).read_text(encoding="utf-8"), media_type)


def _add(app: FastAPI, path: str, text: str, media_type: str) -> None:
    async def found() -> Response:
        return Response(text, headers=HEADERS, media_type=media_type)

    app.add_api_route(path, found, methods=["GET", "HEAD"], include_in_schema=False)


def page_of(document: Mapping[str, Any]) -> str:
    """The page in HTML, from an OpenAPI document."""
    shapes = document["components"]["schemas"]
    operations = [
        (method.upper(), path, operation)
        for path, by_method in document["paths"].items()
        for method, operation in by_method.items()
    ]
    return _PAGE.format(
        title=f"{escape(document['info']['title'])} {escape(document['info']['version'])}",
        about=escape(document["info"]["description"]),
        links=" ".join(f'<a href="#{_anchor(*one[:2])}">{one[0]} {escape(one[1])}</a>' for one in operations),
        operations="".join(_operation(*one, shapes) for one in operations),
        shapes="".join(
            f'<h3 id="{escape(name)}">{escape(name)}</h3><p>{escape(shape.get("description", ""))}</p>{_fields(shape)}'
            for name, shape in sorted(shapes.items())
        ),
    )


def _operation(method: str, path: str, operation: Mapping[str, Any], shapes: Mapping[str, Schema]) -> str:
    bodies = operation.get("requestBody", {}).get("content", {})
    parameters = operation.get("parameters", [])
    token = " <small>needs the token</small>" if operation.get("security") else ""
    parts = [f"<h2><b>{method}</b> {escape(path)}{token}</h2><p>{escape(operation.get('description', ''))}</p>"]
    parts += [_parameters(parameters)] if parameters else []
    for media_type, body in bodies.items():
        parts.append(f"<h3>Body: {escape(media_type)}</h3>{_fields(_resolved(body['schema'], shapes))}")
    rows = [
        (
            escape(status),
            escape(answer["description"]),
            " or ".join(map(_answer_type, answer.get("content", {}).items())),
        )
        for status, answer in operation["responses"].items()
    ]
    parts.append(f"<h3>Answers</h3>{_table(('status', 'when', 'body'), rows)}")
    parts.append(_trial(method, path, parameters, bodies, shapes))
    return f'<section id="{_anchor(method, path)}">{"".join(parts)}</section>'


def _trial(
    method: str, path: str, parameters: list[Any], bodies: Mapping[str, Any], shapes: Mapping[str, Schema]
) -> str:
    """A form for trying a route, which docs.js sends: with all parameters, and one of the bodies."""
    fields = [
        f'<label>{escape(one["name"])} <input data-in="{one["in"]}" name="{escape(one["name"])}"></label>'
        for one in parameters
    ]
    if len(bodies) > 1:
        options = "".join(f"<option>{escape(media_type)}</option>" for media_type in bodies)
        fields.append(f'<label>body <select name="media type">{options}</select></label>')
    for i, (media_type, body) in enumerate(bodies.items()):
        schema = _resolved(body["schema"], shapes)
        if "examples" in schema:
            example = escape(json.dumps(schema["examples"][0], indent=2))
            inner = f'<textarea name="json" rows="8" spellcheck="false" aria-label="body">{example}</textarea>'
        else:
            inner = "".join(_input(name, field) for name, field in schema["properties"].items())
        hidden = " hidden" if i else ""
        fields.append(f'<fieldset data-type="{escape(media_type)}"{hidden}>{inner}</fieldset>')
    return (
        f'<details><summary>Try it</summary><form data-method="{method}" data-path="{escape(path)}">{"".join(fields)}'
        "<button>Send</button></form><output></output></details>"
    )


def _input(name: str, field: Schema) -> str:
    kind = ' type="file" multiple' if field.get("items", {}).get("contentMediaType") == FILE else ""
    return f'<label>{escape(name)} <input name="{escape(name)}"{kind}></label>'


def _parameters(parameters: list[Any]) -> str:
    rows = [
        (f"<code>{escape(one['name'])}</code>", f"{one['in']}: {_words(one['schema'])}", _notes(one["schema"]))
        for one in parameters
    ]
    return _table(("parameter", "in", ""), rows)


def _fields(schema: Schema) -> str:
    """The fields of an object, or the values of another schema."""
    if "properties" not in schema:
        return f"<p>{_words(schema)}</p>"
    required = schema.get("required", [])
    rows = [
        (f"<code>{escape(name)}</code>{'*' * (name in required)}", _words(field), _notes(field))
        for name, field in schema["properties"].items()
    ]
    return _table(("field", "type", "meaning; fields with * are required" if required else "meaning"), rows)


def _words(schema: Schema) -> str:
    """The type of a value, in a few words of HTML."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(map(_words, schema["anyOf"]))
    if "const" in schema or "enum" in schema:
        return " or ".join(escape(json.dumps(value)) for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {_words(schema.get('items', {}))}"
    return "file" if schema.get("contentMediaType") == FILE else escape(schema.get("type", "text"))


def _notes(schema: Schema) -> str:
    """The description of a value, with its limits and its default."""
    every = [schema, *schema.get("anyOf", [])]
    bounds = [words.format(_number(one[name])) for one in every for name, words in BOUNDS.items() if name in one]
    default = [f"default {json.dumps(schema['default'])}"] if schema.get("default") is not None else []
    said = [one["description"] for one in every if "description" in one]
    return escape("; ".join([*said, *bounds, *default]))


def _number(value: float) -> float:
    return int(value) if value == int(value) else value  # a form's bounds are read as 1.0


def _answer_type(content: tuple[str, Mapping[str, Any]]) -> str:
    media_type, body = content
    return _words(body["schema"]) if "$ref" in body.get("schema", {}) else escape(media_type)


def _resolved(schema: Schema, shapes: Mapping[str, Schema]) -> Schema:
    return shapes[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


def _table(head: tuple[str, ...], rows: list[tuple[str, str, str]]) -> str:
    lines = "".join(f"<tr><td>{'<td>'.join(row)}" for row in rows)
    named = "".join(f"<th>{name}" if name else "<td>" for name in head)
    return f"<table><tr>{named}{lines}</table>"


def _anchor(method: str, path: str) -> str:
    return escape(method.lower() + path.replace("/", "-").replace("{", "").replace("}", ""))
