"""Training of challengers: `python -m training run SPEC.json`. Only the subprocess imports torch."""
