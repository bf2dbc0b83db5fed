"""Did it hold? Fingerprints of tensors, and the comparison of what is with what was."""

from frostline.proof.changes import Change, Proof
from frostline.proof.evidence import Evidence
from frostline.proof.fingerprint import fingerprint

__all__ = ["Change", "Evidence", "Proof", "fingerprint"]
