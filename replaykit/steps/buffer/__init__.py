"""The rows of earlier tasks that later stages replay."""
