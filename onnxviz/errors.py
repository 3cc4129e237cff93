"""Every error that a user can cause.

::

    OnnxvizError                 exit code 1: something failed
    ├── UsageError               exit code 2: the call itself is wrong
    │   ├── LayerNotFoundError   no layer, or several, match a name
    │   └── UnitError            a channel or position that the layer does not have
    ├── ModelError               the file is not a model that can be analysed
    │   └── UnsupportedOpError   an operator on the path has no reverse rule
    ├── ImageError               an image that cannot be read (skipped and counted in a scan)
    │   └── NoImagesError        nothing to scan
    ├── WeightsError             a weight file for a converter is not what it should be
    ├── OutputError              a file that cannot be written: a full disk, no permission
    ├── ProviderError            the execution provider asked for is not there
    ├── AtlasError               a saved atlas or scan cannot be read, written or put together
    │   └── DamagedError         its content is not what was written
    └── LockedError              another process works in the same place

A message names the place, what was found and what was expected, and what to do next, in a line or two.
"""

from __future__ import annotations

__all__ = [
    "AtlasError",
    "DamagedError",
    "ImageError",
    "LayerNotFoundError",
    "LockedError",
    "ModelError",
    "NoImagesError",
    "OnnxvizError",
    "OutputError",
    "ProviderError",
    "UnitError",
    "UnsupportedOpError",
    "UsageError",
    "WeightsError",
]


_LONGEST = 480
"""Characters of a message. Names out of a file may be of any length, and hold what a terminal would obey."""


class OnnxvizError(Exception):
    """Base of all errors that onnxviz raises on purpose."""

    exit_code = 1

    def __str__(self) -> str:
        """The message in one line, fit to be printed: control characters are spelled out, a long one is cut."""
        text = "".join(
            sign if sign.isprintable() else sign.encode("unicode_escape").decode("ascii")
            for sign in " ".join(super().__str__().splitlines())
        )
        end = _LONGEST // 3
        return text if len(text) <= _LONGEST else f"{text[: _LONGEST - end - 3]} … {text[-end:]}"


class UsageError(OnnxvizError):
    """The call is wrong: an option, a name, a missing file."""

    exit_code = 2


class LayerNotFoundError(UsageError):
    """No layer, or more than one, answers to a name."""


class UnitError(UsageError):
    """A channel or position that the layer does not have."""


class ModelError(OnnxvizError):
    """A file that is not a model, or a model that cannot be analysed."""


class UnsupportedOpError(ModelError):
    """An operator on the path from the layer to the input has no reverse rule."""


class ImageError(OnnxvizError):
    """An image that cannot be read."""


class NoImagesError(ImageError):
    """A data set without a single usable image."""


class WeightsError(OnnxvizError):
    """A weight file that is not what its converter expects."""


class OutputError(OnnxvizError, OSError):
    """A file or folder that cannot be written."""


class ProviderError(OnnxvizError):
    """An execution provider that is not available here."""


class AtlasError(OnnxvizError):
    """A saved atlas or scan that cannot be read, written or put together with others."""


class DamagedError(AtlasError):
    """A saved scan whose content is not what was written."""


class LockedError(OnnxvizError):
    """Another process works in the same folder."""
