"""Reference losses: per domain the lowest held-out loss of a small model that was fine-tuned on it alone.

(arXiv 2411.11266, section 3.1.) A host brings how a domain is trained (`runs.DomainTrainer`). All else is here:
`making` says what the runs are made with, `runs` goes through the domains and survives a kill at any place,
`document` is the file with the result, and `checks` tells whether that file fits a run.
"""

from versatune_plugin.measuring.references.checks import missing_problem, of_file, refuse, row_misfits
from versatune_plugin.measuring.references.document import References
from versatune_plugin.measuring.references.making import Making
from versatune_plugin.measuring.references.runs import DomainTrainer, forget, is_finished, runs_folder

__all__ = [
    "DomainTrainer",
    "Making",
    "References",
    "forget",
    "is_finished",
    "missing_problem",
    "of_file",
    "refuse",
    "row_misfits",
    "runs_folder",
]
