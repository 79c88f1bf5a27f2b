"""Names of pictures and the folder or URL where they start, joined."""

import os
import re


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
