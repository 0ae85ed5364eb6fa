"""The studies by name, in the order in which they run and are reported."""

from .base import Study

STUDIES: dict[str, Study] = {
    "table1": Study("Table 1: every method", "table1", reads=("shots", "methods")),
    "table2": Study("Table 2: what each part contributes", "table2", needs=("modalities",), reads=("shots",)),
    "figure2": Study(
        "Figure 2: free energy over training", "figures", "figure2", needs=("modalities",), reads=("shots",)
    ),
    "figure3": Study("Figure 3: accuracy over the number of support clips", "figures", "figure3"),
    "figure4": Study("Figure 4: who teaches whom", "figures", "figure4", needs=("modalities",), reads=("shots",)),
    "figure5": Study("Figure 5: accuracy over the number of classes", "figures", "figure5"),
    "reliability": Study(
        "Reliability: which modality to trust, and how far",
        "reliability",
        reads=("shots",),
        helpers=("../../meta/reliability.py", "../../meta/scaling.py"),
    ),
    "robustness": Study(
        "Robustness: harmed and missing modalities",
        "robustness",
        reads=("shots", "videos"),
        helpers=("harmed_queries.py", "../corrupt.py", "../feature_harms.py", "../harmed_cache.py"),
    ),
    "transfer": Study("Transfer: tested on other data", "transfer", needs=("targets",), reads=("shots", "targets")),
    "examples": Study(
        "Examples: clips that one modality got right alone",
        "examples",
        needs=("modalities",),
        reads=("shots", "videos"),
    ),
}
"""What `amfir study` runs. Titles are those of its report."""
