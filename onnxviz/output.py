"""Files that cannot be written: a full disk, a folder without permission."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from onnxviz.errors import OnnxvizError, OutputError

__all__ = ["writing"]

_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "Free some space, or choose another place with --out."),
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS), "Choose a place that you may write to, with --out."
    ),
}


@contextmanager
def writing(where: str | Path) -> Iterator[None]:
    """What the system says against a file becomes an `OutputError`, which is an `OSError`, too.

    Args:
        where: the file, or what was being written, if the system does not name one.
    """
    try:
        yield
    except OnnxvizError:
        raise
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        place = error.filename2 or error.filename or where
        raise OutputError(f"{place}: {reason}. {_ADVICE.get(error.errno or 0, '')}".strip()) from error
