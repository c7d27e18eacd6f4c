"""Values only: what a job, its reference and its outcome are. No input or output happens in this room."""
