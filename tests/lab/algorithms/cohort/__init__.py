"""Analyses of a cohort that is spread over organizations: tables, survival, regression, and a look around.

Owns what the algorithm tools find by name. Made with the vantage6 algorithm tools as any algorithm is; it runs in an
algorithm image only, and must not know the agent, the lab or where it runs.
"""

# Checked with the project's tools, which do not see what is inside the image.
# mypy: disable-error-code="import-not-found, untyped-decorator"

from cohort.crosstab import count_cells, cross_table
from cohort.diagnosis import look_around, shared_note
from cohort.regression import logistic_regression, newton_part
from cohort.survival import event_table, event_times, survival_curve

__all__ = [
    "count_cells",
    "cross_table",
    "event_table",
    "event_times",
    "logistic_regression",
    "look_around",
    "newton_part",
    "shared_note",
    "survival_curve",
]
