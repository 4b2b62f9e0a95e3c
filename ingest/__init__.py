"""Kafka to Postgres with exactly-once effect, and feedback to preference pairs."""
