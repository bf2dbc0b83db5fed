"""What to ship: deltas of what was trained, and what two checkpoints have in common."""

from frostline.checkpoint.delta import Delta, DeltaTensor, read_delta
from frostline.checkpoint.load import load_trained
from frostline.checkpoint.merge import Merged, merge_delta
from frostline.checkpoint.save import save_trained
from frostline.checkpoint.tensors import fingerprints
from frostline.checkpoint.verify import Difference, Verification, verify_checkpoints

__all__ = [
    "Delta",
    "DeltaTensor",
    "Difference",
    "Merged",
    "Verification",
    "fingerprints",
    "load_trained",
    "merge_delta",
    "read_delta",
    "save_trained",
    "verify_checkpoints",
]
