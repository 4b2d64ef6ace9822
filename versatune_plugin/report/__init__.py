"""What a run drew and what it did: as text, as a plot, and as a page to look at.

`runs` loads what output directories hold, `run_sections` and `comparison` make `parts` of it (sections of tables and
charts), `rendering` draws the charts, `page` sets everything as one HTML file, and `making` puts them together.
Loading this package loads neither matplotlib nor jinja2.
"""

from versatune_plugin.report.drawing import numbered
from versatune_plugin.report.making import Report, make_report
from versatune_plugin.report.plot import plot_history
from versatune_plugin.report.run_charts import draw_mixture
from versatune_plugin.report.summary import format_summary, format_update, summarise

__all__ = [
    "Report",
    "draw_mixture",
    "format_summary",
    "format_update",
    "make_report",
    "numbered",
    "plot_history",
    "summarise",
]
