"""Order and lease jobs: which worker gets which reference, and for how long. PostgreSQL has the final say."""
