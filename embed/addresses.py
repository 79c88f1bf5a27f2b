"""Names of pictures and the folder or URL where they start, joined."""

import os
import re
from collections.abc import Callable
from urllib.parse import quote

# A name that stands for itself: an absolute path or a URI.
WHOLE = r"^(/|[A-Za-z][A-Za-z0-9+.-]*://)"


Place = Callable[[str], str | None]  # from a table's name of a picture to what `place_of` gives


def join(root: str, name: str) -> str:
    """The path or URI of what is called `name` under `root`; `name` where it stands for itself.

    In web and file addresses the name is percent-encoded, and a web root's query, such as its signature, comes last.
    Other stores, such as s3://, take names as they are.

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
    """`place_of` for the names of pictures that start at `root`."""
    return lambda key: place_of(key, join(root, key))


def place_of(key: str, uri: str | None) -> str | None:
    """Where a picture lies, in the one spelling that a cache notes: an absolute path, or an address.

    None of a picture that lies in a table. A query that only the root of the pictures has, such as its signature, is
    left out, as a cache is no place for secrets; one that the table itself states is kept.

    >>> place_of("b/../a.png", "/data/b/../a.png"), place_of("a.png", "https://host/p/a.png?sig=1")
    ('/data/a.png', 'https://host/p/a.png')
    """
    if uri is None or (key == uri and "://" in uri):
        return uri
    if re.match("https?://", uri, re.IGNORECASE):
        return uri.partition("?")[0]
    return uri if "://" in uri else os.path.abspath(uri)
