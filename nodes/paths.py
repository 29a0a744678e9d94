"""Paths as people write them."""

import os.path


def is_remote(path: str) -> bool:
    """Whether a path names another computer: what only looks at a workflow does not go there."""
    return as_written(path).replace("\\", "/").startswith("//")


def as_written(path: str) -> str:
    """Without blanks and the quotes Windows copies around a path, and with ``~`` for the home folder; may be empty."""
    return os.path.expanduser(path.strip().strip('"').strip())
