"""The closed-form road: prices of operations and the schedule's critical path, in milliseconds."""
