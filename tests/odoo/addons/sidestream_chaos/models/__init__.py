from . import chaos, probe
