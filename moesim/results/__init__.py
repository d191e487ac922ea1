"""Statements about a run: records, the result with its metrics, pictures, files."""
