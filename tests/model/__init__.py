"""The Redis broker beside the memory broker, under one clock, on any mixture of calls: no difference."""
