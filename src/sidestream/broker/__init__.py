"""Order jobs and lease their references to workers."""
