"""HetCache: caching for masked video editing with diffusion transformers.

Pure torch: nothing here knows a host. :mod:`hetcache_core.hosts` holds the adapters.
"""

from .engine import Engine
from .plan import Plan, plan
from .policy import PRESETS, CachePolicy
from .profile import ErrorProfile
from .setup import RunSetup
from .stats import RunStats

__all__ = ["PRESETS", "CachePolicy", "Engine", "ErrorProfile", "Plan", "RunSetup", "RunStats", "plan"]
