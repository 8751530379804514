"""Reads the files of a run back and shows them: as a table, as a picture and as a page. Never imports torch."""

from feature_gan_kd.report.curves import curves_figure, write_curves
from feature_gan_kd.report.page import distinct_labels, write_page
from feature_gan_kd.report.records import RecordedRun, collect_series, read_run
from feature_gan_kd.report.text_table import comparison_table, results_table

__all__ = [
    "RecordedRun",
    "collect_series",
    "comparison_table",
    "curves_figure",
    "distinct_labels",
    "read_run",
    "results_table",
    "write_curves",
    "write_page",
]
