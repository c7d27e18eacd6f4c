from sidestream import GiveUp, RetryPolicy

from . import models
from .action import action
from .enqueue import INLINE
from .hooks import pre_init_hook, uninstall_hook

__all__ = ["INLINE", "GiveUp", "RetryPolicy", "action", "models", "pre_init_hook", "uninstall_hook"]
