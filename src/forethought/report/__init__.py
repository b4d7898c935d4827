"""What a person looks at: what work cost, what the store saved, and how that is known.

gather -> summarize -> to_text | to_html | to_dict | to_markdown | to_csv | to_boamps
"""

from forethought.report.budget import Verdict, check_budget
from forethought.report.exports import to_boamps, to_csv, to_dict, to_markdown
from forethought.report.factors import Carbon, Factors, Price
from forethought.report.gathering import gather
from forethought.report.page import to_html
from forethought.report.summary import Summary, summarize
from forethought.report.text import to_text

__all__ = [
    "Carbon",
    "Factors",
    "Price",
    "Summary",
    "Verdict",
    "check_budget",
    "gather",
    "summarize",
    "to_boamps",
    "to_csv",
    "to_dict",
    "to_html",
    "to_markdown",
    "to_text",
]
