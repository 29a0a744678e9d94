"""The nodes, one file each; `all_nodes` is the only place that knows them all. Importing this loads nothing."""


def all_nodes() -> list[type]:
    """Every node class, in the order of a workflow. Needs the host."""
    from .compare import Compare
    from .demo_model import DemoModel
    from .load_mask_video import LoadMaskVideo
    from .patch_model import PatchModel
    from .policy_settings import PolicySettings
    from .profile_model import ProfileModel
    from .stats import Stats

    return [LoadMaskVideo, PolicySettings, PatchModel, Stats, Compare, ProfileModel, DemoModel]
