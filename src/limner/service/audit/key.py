"""The key of the audit log: 32 random bytes in the data folder.

They are the Ed25519 key that signs checkpoints, and the keys of the accounts' prompts are encrypted with a
secret that is derived from them.
"""

from pathlib import Path

from limner.service.secret import new_secret, read_secret

KEY_FILE = Path("keys") / "audit.key"
_NAME = "key of the audit log"
MISSING = (
    "restore the file from a backup, copy it from another machine of this ledger, or make a new one with "
    "`limner audit key --new`; the log goes on with it, but prompts that were sealed before stay unreadable"
)


def audit_key(data: Path, *, create: bool = False) -> bytes:
    """The key of a data folder.

    Args:
        create: Whether to make it if there is none. Not where the log was signed with one already.

    Raises:
        InvalidRequest: It is missing, or the file holds something else.
        OutputError: It cannot be written.
    """
    return read_secret(data / KEY_FILE, _NAME, create=create, missing=MISSING)


def new_audit_key(data: Path) -> bytes:
    """Make a key, in place of one that is there. Only the owner can read its file. Raises OutputError."""
    return new_secret(data / KEY_FILE, _NAME)
