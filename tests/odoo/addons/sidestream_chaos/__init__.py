from . import breaks, models
