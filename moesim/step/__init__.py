"""What a training step is made of: layers on stages, slots in schedule order, operations of a slot, and their prices.

Both roads read it: `estimate` prices each operation by its busiest rank, `engine` by arrays over ranks.
"""
