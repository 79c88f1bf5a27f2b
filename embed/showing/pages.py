"""Pages that a person opens as a file: templates in one style, with pictures, plots and style inside.

A page loads nothing from elsewhere and runs no script. Whatever a template is given is escaped, except `Markup`.
"""

from pathlib import Path

HERE = Path(__file__).parent


def page(template: Path, **values: object) -> str:
    """The HTML of a template, which may extend `layout.html` and import `pieces.html` of this folder."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader([template.parent, HERE])
    environment = Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    return environment.get_template(template.name).render(**values)
