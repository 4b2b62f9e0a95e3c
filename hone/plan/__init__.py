"""The planner: from labels, hardware and goal to a training run, with its arithmetic. Pure, and without torch."""
