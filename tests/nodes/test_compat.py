"""Arguments an older host does not know."""

from nodes.compat import known


class New:
    def __init__(self, id, tooltip=None, extra_dict=None, advanced=None): ...


class Old:
    def __init__(self, id, tooltip=None, extra_dict=None): ...


class Oldest:
    def __init__(self, id, tooltip=None): ...


class Any:
    def __init__(self, **kwargs): ...


def test_known():
    asked = dict(tooltip="t", advanced=True)
    assert known(New, **asked) == asked
    assert known(Old, **asked) == dict(tooltip="t", extra_dict={"advanced": True})
    assert known(Old, **asked, extra_dict={"a": 1})["extra_dict"] == {"advanced": True, "a": 1}
    assert known(Old, tooltip="t", advanced=False) == dict(tooltip="t")
    assert known(Oldest, **asked) == dict(tooltip="t")
    assert known(Any, **asked) == asked
