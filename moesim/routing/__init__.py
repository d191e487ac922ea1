"""Tokens choose experts: loads, routers, capacity, and the counts that follow."""
