"""How large media may be: a file of a few bytes can announce pictures or sound that no memory holds.

What lies beyond a limit is refused with a message that names the environment variable that raises it.
"""

from __future__ import annotations

import os

from avsal.errors import ConfigError, MediaError

#: Largest values that are accepted, by the name of the environment variable that overrides them.
LIMITS = {
    "AVSAL_MAX_PIXELS": 2**26,  #: pixels of a picture (8192 x 8192)
    "AVSAL_MAX_RATE": 768_000,  #: samples per second of a sound
    "AVSAL_MAX_SAMPLES": 2**29,  #: samples of a sound that is loaded as a whole (3.1 hours at 48 kHz)
    "AVSAL_MAX_CLIP_SAMPLES": 2**24,  #: samples around one clip (5.8 minutes at 48 kHz)
    "AVSAL_MAX_ARRAY": 2**31,  #: bytes of an array in a .npz file that is unpacked as a whole
    "AVSAL_MAX_PARAMETERS": 2**30,  #: parameters of a network that a checkpoint's arguments describe
    "AVSAL_MAX_CLIP_VALUES": 2
    ** 28,  #: values of one clip that a network asks for (32 frames of 1 670 x 1 670)
}


def limit(name: str) -> int:
    """Return a limit, from the environment or the default.

    Raises:
        ConfigError: the environment variable is not a positive whole number.
    """
    text = os.environ.get(name)
    if text is None:
        return LIMITS[name]
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{name}={text!r}: the limit must be a positive whole number.")
    return int(text)


def check(name: str, value: float, what: str) -> None:
    """Refuse what lies beyond a limit.

    Raises:
        MediaError: `value` is larger than the limit; the message begins with `what`.
    """
    if value > limit(name):
        raise MediaError(
            f"{what}, more than the limit of {limit(name):,}. If the file is right, set the environment "
            f"variable {name} to a larger number."
        )
