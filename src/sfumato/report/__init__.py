"""Pages, figures and pictures of results that were measured elsewhere; nothing is measured here."""

from sfumato.report.chart import Curve, Point
from sfumato.report.demo import write_demo_report
from sfumato.report.drawn import save_figure
from sfumato.report.figures import information_curve, trade_off
from sfumato.report.pictures import png_data_uri, save_side_by_side

__all__ = [
    "Curve",
    "Point",
    "information_curve",
    "png_data_uri",
    "save_figure",
    "save_side_by_side",
    "trade_off",
    "write_demo_report",
]
