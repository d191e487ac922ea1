"""What renewing the placement of experts is worth: better balance against the bytes that move for it."""
