"""Tasks about numbers."""

from __future__ import annotations

from examples.remote_exec.task import RemoteTask


class Factors(RemoteTask):
    """The prime factors of a number."""

    type = "factors"

    def run(self, number: int) -> list[int]:
        found, divisor = [], 2
        while divisor * divisor <= number:
            while number % divisor == 0:
                found.append(divisor)
                number //= divisor
            divisor += 1
        return [*found, number] if number > 1 else found
