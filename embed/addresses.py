"""Names of pictures and the folder or URL where they start, joined."""

import re
from urllib.parse import quote

# A name that stands for itself: an absolute path or a URI.
WHOLE = r"^(/|[A-Za-z][A-Za-z0-9+.-]*://)"


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
