"""What watches the loop: an exporter of what only the database knows, drift detectors, rules and a dashboard."""
