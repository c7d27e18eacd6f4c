"""The broker that dispatches from PostgreSQL alone while Redis is unavailable."""
