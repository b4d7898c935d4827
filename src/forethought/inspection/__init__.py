"""What `forethought inspect` knows of a model: its parts, what each costs, and where it can be cut."""

from forethought.inspection.report import Inspection, ModulePart, inspect_model

__all__ = ["Inspection", "ModulePart", "inspect_model"]
