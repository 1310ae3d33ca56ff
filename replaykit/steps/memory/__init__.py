"""The model's own rows by which its drift is measured."""
