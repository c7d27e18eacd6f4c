from sidestream import GiveUp, RetryPolicy

from . import models
from .action import action
from .hooks import pre_init_hook, uninstall_hook

__all__ = ["GiveUp", "RetryPolicy", "action", "models", "pre_init_hook", "uninstall_hook"]
