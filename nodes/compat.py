"""One schema for every host this pack supports: arguments an older host does not know are left out."""

import inspect


def known(cls: type, **kwargs) -> dict:
    """Those of `kwargs` that the constructor of `cls` takes.

    ComfyUI 0.8 has no `advanced`, but hands `extra_dict` on to the same frontend: there it travels in that.
    """
    takes = inspect.signature(cls).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values()):
        return kwargs
    if kwargs.get("advanced") and "advanced" not in takes:
        kwargs["extra_dict"] = {"advanced": True, **(kwargs.get("extra_dict") or {})}
    return {name: value for name, value in kwargs.items() if name in takes}
