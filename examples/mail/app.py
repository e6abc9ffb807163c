"""Mail through an SMTP server: `pgq-worker examples.mail.app:app`."""

from __future__ import annotations

import os
import smtplib
from email.message import EmailMessage

from pgqueue import App, Job, Reject, Retry

SERVER = os.environ.get("SMTP_SERVER", "localhost:25")
SENDER = "shop@example.org"

app = App()


@app.task("mail.send", queue="mail", retry=[10, 60, "10 minutes", "1 hour"], timeout=30)
def send(job: Job, to: str, subject: str, text: str) -> None:
    """Hand one letter over to the SMTP server."""
    letter = EmailMessage()
    letter["From"], letter["To"], letter["Subject"] = SENDER, to, subject
    # A worker may die after the server took the letter: the next one sends it under the same id, so it can be told.
    letter["Message-ID"] = f"<pgqueue-{job.id}@example.org>"
    letter.set_content(text)
    host, _, port = SERVER.rpartition(":")
    try:
        with smtplib.SMTP(host, int(port), timeout=20) as server:
            server.send_message(letter)
    except smtplib.SMTPRecipientsRefused as refused:
        for code, answer in refused.recipients.values():
            _judge(code, answer)
    except smtplib.SMTPResponseException as error:
        _judge(error.smtp_code, error.smtp_error)


def _judge(code: int, answer: bytes | str) -> None:
    """Say what an answer means for the job: 4xx is for now, 5xx for good. Whatever else goes wrong is tried again."""
    said = f"{code} {answer.decode(errors='replace') if isinstance(answer, bytes) else answer}"
    if code >= 500:
        raise Reject(said, final=True) from None
    raise Retry(said) from None
