"""Order and lease: who gets which reference, and for how long. PostgreSQL decides; a broker only hastens."""
