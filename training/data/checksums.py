"""Is a file the published one? md5 of whole files, and git's blob id of lists."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Literal

from training.errors import ConfigError

VerifyMode = bool | Literal["auto"]


def md5(content: bytes) -> str:
    """Return the md5 of a content, in hexadecimal."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def git_blob_id(content: bytes) -> str:
    r"""Return the id under which git stores a file of this content.

    Example:
        >>> git_blob_id(b"hello\n")
        'ce013625030ba8dba906f756967f9e9ca394464a'
    """
    header = b"blob %d\0" % len(content)
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest()


@dataclass
class Verifier:
    """Compares checksums as `DataConfig.verify_md5` says, and collects the warnings.

    Args:
        mode: See `DataConfig.verify_md5`.
    """

    mode: VerifyMode
    notes: list[str] = field(default_factory=list)

    def compare(
        self, path: object, found: str, published: tuple[str, ...], *, full_size: bool, what: str
    ) -> None:
        """Compare one file.

        Args:
            path: The file, for the message.
            found: Its checksum.
            published: The checksums of the published file (of its variants).
            full_size: Whether it has as many images as the published file.
            what: Name of the checksum, for the message.

        Raises:
            ConfigError: If the file claims to be the published one, and is not.
        """
        if self.mode is False or found in published:
            return
        message = (
            f"{path}: expected the published file, {what} {' or '.join(published)}, got {found}"
        )
        if self.mode is True or full_size:
            raise ConfigError(
                f"{message}; the file is corrupt or another one: fetch it again, or pass "
                "--data.verify_md5 false to use it as it is."
            )
        self.notes.append(f"{message}; it has another number of images, and is used as it is.")
