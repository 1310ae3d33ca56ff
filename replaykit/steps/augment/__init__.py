"""Further target rows: questions in other words, and pairs that differ in one fact."""
