"""Define jobs, references and outcomes as values, without input or output."""
