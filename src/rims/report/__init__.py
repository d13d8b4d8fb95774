"""From run folders to a page and a table. matplotlib, jinja2 and rich are imported only when one is made."""

from rims.report.activity import trace_model
from rims.report.page import write_report
from rims.report.terminal import print_table

__all__ = ["print_table", "trace_model", "write_report"]
