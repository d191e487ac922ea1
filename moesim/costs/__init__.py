"""What one thing costs: pure functions returning seconds, bytes, joules, dollars."""
