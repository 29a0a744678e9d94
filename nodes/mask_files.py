"""Which files a mask is read from: one file, a folder of images, a numbered sequence, or a wildcard."""

import glob
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from .paths import as_written

IMAGES = {".bmp", ".dpx", ".exr", ".jpeg", ".jpg", ".png", ".tga", ".tif", ".tiff", ".webp"}
NUMBER = re.compile(r"%0?(\d*)d")  # of a numbered sequence: mask_%04d.png


class MaskError(ValueError):
    """A mask that cannot be used. The message names the file and says what to do about it."""


class TooLarge(MaskError):
    """A mask that would take more memory than is allowed."""


@dataclass(frozen=True)
class Source:
    """What to read: a single file, or the images of a sequence in order."""

    name: str  # as the user knows it, for messages
    files: tuple[Path, ...]  # absolute, at least one
    sequence: bool  # whether every file is one frame

    def fingerprint(self) -> str:
        """Changes when a file is added, removed or written, without reading any."""
        stats = [(str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in self.files]
        return hashlib.sha256(repr(stats).encode()).hexdigest()


def find(path: str, base: Path, name: str | None = None) -> Source:
    """Find the files that `path` stands for.

    Args:
        path: a file, a folder, a printf pattern such as `masks/mask_%04d.png`, or a wildcard such as `masks/*.png`.
            Quotes around it, as Windows copies them, and a leading `~` are understood.
        base: the folder relative paths start from.
        name: what messages call it; the path where None.

    Raises:
        MaskError: there is no such file, or no image among the files.
    """
    path = as_written(path)
    name = name or path
    full = base / path
    if full.is_file():
        if not full.stat().st_size:
            raise MaskError(f"{name}: the file is empty. Upload or export it again.")
        return Source(name, (full,), sequence=False)
    if full.is_dir():
        found = full.iterdir()
    elif NUMBER.search(full.name):
        return Source(name, _numbered(name, full), sequence=True)
    elif glob.has_magic(path):
        found = (base / file for file in glob.glob(path, root_dir=base))  # whose own name may hold brackets
    else:
        raise MaskError(f"{name}: no such file or folder. Choose another one, or upload it again.")
    files = sorted((file for file in found if _is_image(file)), key=_natural)
    if not files:
        raise MaskError(f"{name}: no images there. Files with these endings count: {', '.join(sorted(IMAGES))}.")
    return Source(name, tuple(files), sequence=True)


def _numbered(name: str, pattern: Path) -> tuple[Path, ...]:
    """The files of a printf pattern. A gap is refused: every frame behind it would come too early."""
    match = NUMBER.search(pattern.name)
    before, after = (re.escape(part) for part in (pattern.name[: match.start()], pattern.name[match.end() :]))
    wanted = re.compile(rf"{before}(\d{{{match[1] or 1},}}){after}")
    files = {}
    for file in pattern.parent.iterdir() if pattern.parent.is_dir() else ():
        if found := wanted.fullmatch(file.name):
            files[int(found[1])] = file
    if not files:
        raise MaskError(f"{name}: no file fits this pattern; mask_%04d.png means mask_0001.png, mask_0002.png, ...")
    for number in range(min(files), max(files)):
        if number not in files:
            raise MaskError(f"{name}: number {number} of the sequence is missing. Add it, or give the folder instead.")
    return tuple(files[number] for number in sorted(files))


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in IMAGES and not file.name.startswith(".") and file.is_file()


def _natural(file: Path) -> list:
    """Sorts mask_2 before mask_10."""
    parts = re.split(r"(\d+)", str(file))
    return [(int(part), "") if part.isdecimal() else (0, part.lower()) for part in parts if part]
