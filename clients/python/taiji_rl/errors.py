"""Why there are no rewards. Every message names the request, what came back and what to do."""

from __future__ import annotations


class RewardError(Exception):
    """No rewards. `status` and `code` are the service's; `None` where nothing of the kind came back."""

    def __init__(self, request: str, what: str, remedy: str, status: int | None = None, code: str | None = None):
        said = [request, *([f"status {status}"] if status else []), *([code] if code else []), what]
        super().__init__(f"{': '.join(said)}; {remedy}")
        self.request = request
        self.status = status
        self.code = code


class RewardsRefused(RewardError):
    """The service does not want this request; it would not want it a second time either."""


class RewardsUnavailable(RewardError):
    """Busy, broken or out of reach, still after the last attempt."""


class RewardsMalformed(RewardError):
    """An answer that is not of the contract. Nothing of it is used."""
