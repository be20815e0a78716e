"""Removes credentials from text that is kept."""

from __future__ import annotations

import os
import re
from urllib.parse import quote

_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|AUTH|SIGNATURE", re.IGNORECASE)
_MIN_LENGTH = 8  # shorter values, such as "true", are no secrets and occur in other text
_PATTERNS = (
    (re.compile(r"(?i)\b(bearer|basic)\s+[-\w.~+/=]{8,}"), r"\1 [redacted]"),
    (re.compile(r"(?<=://)[^/\s@]+@"), "[redacted]@"),
    (re.compile(r"(?i)([?&][-\w]*(?:key|token|secret|signature|credential|sig)[-\w]*=)[^&\s\"']+"), r"\1[redacted]"),
    (re.compile(r"\bhf_\w{16,}"), "[redacted]"),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), "[redacted]"),
    (re.compile(r"\beyJ[-\w]{8,}\.[-\w]+\.[-\w]*"), "[redacted]"),  # a JSON Web Token
)


def redact(text: str) -> str:
    """Replace the values of environment variables whose names sound secret, and what looks like a credential."""
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name):
            # A value may be a file of several lines.
            for line in {value, *value.splitlines()}:
                for form in (line.strip(), quote(line.strip(), safe="")):
                    if len(form) >= _MIN_LENGTH:
                        text = text.replace(form, "[redacted]")
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text
