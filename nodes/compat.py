"""One schema for every host this pack supports: arguments an older host does not know are left out."""

import inspect


def known(cls: type, **kwargs) -> dict:
    """Those of `kwargs` that the constructor of `cls` takes.

    Hosts before 0.9 know no `advanced` but pass `extra_dict` on to the same frontend, so it travels in there.
    """
    takes = inspect.signature(cls).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values()):
        return kwargs
    if kwargs.get("advanced") and "advanced" not in takes:
        kwargs["extra_dict"] = {"advanced": True, **(kwargs.get("extra_dict") or {})}
    return {name: value for name, value in kwargs.items() if name in takes}
