"""Health check of a container: `healthy.py URL` wants 2xx, `healthy.py URL PART` a JSON page with that part healthy."""

import json
import sys
from urllib.request import urlopen


def is_healthy(url: str, part: str | None = None) -> bool:
    """Return whether the page says that all is well."""
    with urlopen(url, timeout=5) as page:
        return part is None or json.load(page)[part]["status"] == "healthy"


if __name__ == "__main__":
    sys.exit(not is_healthy(*sys.argv[1:]))
