"""Log lines: as text or as JSON, one line per record whatever clients write into it.

Text from outside may hold line breaks that look like records of ours, and sequences that a terminal obeys. All that is
not printable is escaped; the lines of a traceback are indented, so that none of them begins like a record.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from typing import Any

from ventoux.server.context import current

_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:/@+-")


class RequestLine:
    """The message of a request's one record: `fields` as they are in JSON, as `name=value` in text."""

    def __init__(self, fields: Mapping[str, Any]):
        self.fields = dict(fields)

    def __str__(self) -> str:
        return " ".join(f"{name}={_value(value)}" for name, value in self.fields.items())


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if text and _PLAIN.issuperset(text) else json.dumps(text)


def printable(text: str) -> str:
    """Escapes line breaks, terminal sequences, and whatever else cannot be seen."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


class TextFormatter(logging.Formatter):
    """`LEVEL message`, and a traceback in indented lines below it."""

    def format(self, record: logging.LogRecord) -> str:
        lines = [f"{record.levelname} {printable(record.getMessage())}"]
        if record.exc_info:
            lines += [f"    {printable(line)}" for line in self.formatException(record.exc_info).split("\n")]
        return "\n".join(lines)


class JsonFormatter(logging.Formatter):
    """One JSON object per record, in ASCII; records written during a request hold its id."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        if isinstance(record.msg, RequestLine):
            entry |= {"message": "request", **record.msg.fields}
        else:
            entry["message"] = record.getMessage()
            if request_id := current().request_id:
                entry["request_id"] = request_id
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def configure(log_format: str) -> None:
    """Everything from level INFO on goes to standard error, as "text" or "json"."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # What is no HTTP is refused with a line of ours, which has an id.
    logging.getLogger("uvicorn.error").addFilter(lambda record: record.msg != "Invalid HTTP request received.")
    # Every fetched image would be a record of its own.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
