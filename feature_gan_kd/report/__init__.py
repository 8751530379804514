"""What a run has to show: its files read back, a table, a picture and a page. Never imports torch."""

from feature_gan_kd.report.curves import curves, draw_curves
from feature_gan_kd.report.page import write_page
from feature_gan_kd.report.records import Run, read_run, series
from feature_gan_kd.report.table import table

__all__ = ["Run", "curves", "draw_curves", "read_run", "series", "table", "write_page"]
