"""Log records as JSON, one line each."""

from __future__ import annotations

import json
import logging
from datetime import datetime, timezone

# What every record has; the rest was given as ``extra``.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """Formats a record as an object: time, level, logger, message, error, and whatever was given as ``extra``."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        fields |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        return json.dumps(fields, default=str, ensure_ascii=False)
