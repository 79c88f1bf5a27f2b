"""Join the name of a picture with the folder or URL that it is relative to."""

import os
import re
from collections.abc import Callable
from urllib.parse import quote

# A name that is complete by itself: an absolute path or a URI.
WHOLE = r"^(/|[A-Za-z][A-Za-z0-9+.-]*://)"


Place = Callable[[str], str | None]  # takes a table's name of a picture, gives what `place_of` gives


def join(root: str, name: str) -> str:
    """Return the path or URI of the picture `name` under `root`, or `name` itself if it is already complete.

    In web and file addresses the name is percent-encoded, and the query of a web root, such as a signature, comes last.
    Other stores, such as s3://, take names unchanged.

    >>> join("/data", "a#1.png"), join("s3://bucket/", "a#1.png")
    ('/data/a#1.png', 's3://bucket/a#1.png')
    >>> join("https://host/pictures/?sig=x%2Fy/", "a 50%/b#1.png")
    'https://host/pictures/a%2050%25/b%231.png?sig=x%2Fy/'
    >>> join("https://host/pictures", "https://other/a.png?key=1")
    'https://other/a.png?key=1'
    """
    if re.match(WHOLE, name):
        return name
    folder, mark, query = root.partition("?") if re.match("https?://", root, re.IGNORECASE) else (root, "", "")
    if re.match("(https?|file)://", root, re.IGNORECASE):
        name = quote(name)
    return f"{folder.rstrip('/')}/{name}{mark}{query}"


def places_below(root: str) -> Place:
    """Return a function that gives `place_of` for the names of pictures under `root`."""
    return lambda key: place_of(key, join(root, key))


def place_of(key: str, uri: str | None) -> str | None:
    """Return where a picture is, in the one spelling that a cache stores: an absolute path or a URL.

    Return None for a picture that is stored inside a table. The query of the pictures' root, such as a signature, is
    removed, because a cache must not hold secrets; a query that stands in the table itself is kept.

    >>> place_of("b/../a.png", "/data/b/../a.png"), place_of("a.png", "https://host/p/a.png?sig=1")
    ('/data/a.png', 'https://host/p/a.png')
    """
    if uri is None or (key == uri and "://" in uri):
        return uri
    if re.match("https?://", uri, re.IGNORECASE):
        return uri.partition("?")[0]
    return uri if "://" in uri else os.path.abspath(uri)
