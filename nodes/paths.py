"""Paths as people write them."""

import os.path


def as_written(path: str) -> str:
    """Without blanks and the quotes Windows copies around a path, and with ``~`` for the home folder; may be empty."""
    return os.path.expanduser(path.strip().strip('"').strip())
