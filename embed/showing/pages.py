"""HTML pages to open as files: templates in one style, with pictures, plots and style inside the page.

A page loads nothing from elsewhere and runs no script. All values given to a template are escaped, except `Markup`.
"""

from pathlib import Path

HERE = Path(__file__).parent


def page(template: Path, **values: object) -> str:
    """Return the HTML of a template. It may extend `layout.html` and import `pieces.html` of this folder."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader([template.parent, HERE])
    environment = Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    return environment.get_template(template.name).render(**values)
