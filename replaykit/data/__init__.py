"""Rows: the Record, how it is read from any common format, and how it is kept."""
