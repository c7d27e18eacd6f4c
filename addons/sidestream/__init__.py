from sidestream import GiveUp, RetryPolicy

from . import models
from .action import action
from .enqueue import INLINE
from .hooks import uninstall_hook

__all__ = ["INLINE", "GiveUp", "RetryPolicy", "action", "models", "uninstall_hook"]
