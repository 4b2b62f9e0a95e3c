"""The dashboard as code: its parts, its panels, and how they become Grafana's JSON."""
