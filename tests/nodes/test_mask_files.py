"""Which files a path stands for, and when they count as changed."""

import os

import pytest

from nodes.mask_files import MaskError, find


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "masks").mkdir()
    for name in ("m_2.png", "m_10.png", "m_1.PNG", ".hidden.png", "notes.txt", "n_007.png", "n_008.png", "n_10.png"):
        (tmp_path / "masks" / name).write_bytes(b"x")
    return tmp_path


def names(path, base):
    return [file.name for file in find(path, base).files]


def test_a_file(folder):
    source = find("masks/m_2.png", folder)
    assert source.files == (folder / "masks" / "m_2.png",) and not source.sequence
    assert find(f' "{folder}/masks/m_2.png" ', folder / "elsewhere").files == source.files


def test_a_folder_in_counting_order(folder):
    assert names("masks", folder) == ["m_1.PNG", "m_2.png", "m_10.png", "n_007.png", "n_008.png", "n_10.png"]
    assert find("masks", folder).sequence


def test_a_wildcard(folder):
    assert names("masks/m_?.png", folder) == ["m_2.png"]
    assert names("masks/n*", folder) == ["n_007.png", "n_008.png", "n_10.png"]  # the notes are no image


def test_a_wildcard_below_a_folder_with_brackets(folder):
    """They are the folder's own name and no wildcard."""
    base = folder / "AI [portable]"
    base.mkdir()
    (folder / "masks").rename(base / "masks")
    assert names("masks/m_?.png", base) == ["m_2.png"]
    assert find("masks/m_?.png", base).files == (base / "masks" / "m_2.png",)


def test_a_numbered_sequence(folder):
    assert names("masks/n_%03d.png", folder) == ["n_007.png", "n_008.png"]
    with pytest.raises(MaskError, match="number 9 of the sequence is missing"):
        find("masks/n_%d.png", folder)


@pytest.mark.parametrize("path", ["none.mp4", "none/m_%d.png", "masks/q_%04d.png", "masks/q*.png", "empty"])
def test_nothing_there(path, folder):
    (folder / "empty").mkdir()
    with pytest.raises(MaskError, match=path.replace("*", r"\*")):
        find(path, folder)


def test_an_empty_file(folder):
    (folder / "a.mp4").touch()
    with pytest.raises(MaskError, match=r"a\.mp4: the file is empty"):
        find("a.mp4", folder)


def test_fingerprint(folder):
    before = find("masks", folder).fingerprint()
    assert find("masks", folder).fingerprint() == before
    os.utime(folder / "masks" / "m_2.png", ns=(1, 1))
    touched = find("masks", folder).fingerprint()
    (folder / "masks" / "m_2.png").write_bytes(b"xy")
    os.utime(folder / "masks" / "m_2.png", ns=(1, 1))
    longer = find("masks", folder).fingerprint()
    (folder / "masks" / "m_3.png").write_bytes(b"x")
    assert len({before, touched, longer, find("masks", folder).fingerprint()}) == 4
