"""One HTML file that says what a run found: the verdict, pictures, tables, and how it was made.

Nothing is fetched: styles and pictures are inside, and the same input gives the same bytes. The
pictures are SVG in the page's own colours, so they follow light and dark mode; in each of them up
and right is better, so an axis in nats runs backwards. A model has one colour everywhere: grey for
base, red for the arm without replay.
"""

from replaykit.steps.report.html.page import write_report

__all__ = ["write_report"]
