"""bitsandbytes, which PEFT imports for every run and which then warns of what four bits alone need.

Importing this module silences that; it must come before the first import of PEFT.
"""

from __future__ import annotations

import logging

_log = logging.getLogger("bitsandbytes")
_log.setLevel(logging.ERROR)


def allow_warnings() -> None:
    """Lets bitsandbytes warn, in a run that holds weights in four bits."""
    _log.setLevel(logging.NOTSET)
