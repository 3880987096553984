"""A paper's tables beside the figures measured here.

`table.py` and `claims.py` declare them, `plan.py` names their runs, `runs.py` trains those,
`report.py` and `chart.py` show what they measured, `command.py` is the command line.
"""

from .claims import Beside, Gap, Near
from .command import main
from .table import Row, Table

__all__ = ["Beside", "Gap", "Near", "Row", "Table", "main"]
