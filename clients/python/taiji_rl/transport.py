"""One HTTP request that is repeated where that can help."""

from __future__ import annotations

import http.client
import json
import random
import time
import urllib.error
import urllib.request
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any

from . import contract
from .errors import RewardError, RewardsMalformed, RewardsRefused, RewardsUnavailable

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 60.0

_WRONG_PLACE = "is the URL that of `taiji-trainer rewards serve`?"
_REMEDIES: dict[str | int, str] = {
    "unknown_user": "train on the users of the service's recipe",
    401: "give the service's key to RewardClient(url, key=…)",
    403: "give the service's key to RewardClient(url, key=…)",
    404: _WRONG_PLACE,
    405: _WRONG_PLACE,
    "reward_failed": "mend the reward, or what it reads, as the message says",
    413: "send shorter answers, or fewer in one call",
}


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST would come back as a GET, and the key would go to whoever is named."""

    def redirect_request(self, *_: Any) -> None:
        return None


class _Passing(Exception):
    """A failure that may pass."""

    def __init__(self, error: RewardError, retry_after_s: float | None = None):
        super().__init__(str(error))
        self.error = error
        self.retry_after_s = retry_after_s


class Transport:
    """Requests of one client: its key, its patience. May be shared by threads."""

    def __init__(self, key: str | None, timeout_s: float, retries: int):
        self._key = key
        self._timeout_s = timeout_s
        self._retries = retries
        self._opener = urllib.request.build_opener(_NoRedirect)

    def call(self, url: str, body: Any = None) -> Any:
        """The JSON that comes back; a body makes it a POST. Scoring changes nothing, so every request may be
        repeated."""
        for attempt in range(self._retries + 1):
            try:
                return self._once(url, body)
            except _Passing as failure:
                if attempt == self._retries:
                    raise failure.error from failure.__cause__
                time.sleep(_pause_s(attempt, failure.retry_after_s))
        raise AssertionError("unreachable")

    def _once(self, url: str, body: Any) -> Any:
        method = "GET" if body is None else "POST"
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, headers, method=method)
        what = f"{method} {url}"
        try:
            with self._opener.open(request, timeout=self._timeout_s) as answer:
                content = answer.read()
        except urllib.error.HTTPError as error:
            raise _of_status(what, error) from error
        except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
            reason = str(getattr(error, "reason", error)) or type(error).__name__
            remedy = f"is the service running, and does {self._timeout_s:g} s suffice (timeout_s)?"
            raise _Passing(RewardsUnavailable(what, reason, remedy)) from error
        try:
            return contract.parse(content)
        except contract.Broken as error:
            raise RewardsMalformed(what, str(error), _WRONG_PLACE, answer.status) from error


def _of_status(what: str, error: urllib.error.HTTPError) -> Exception:
    """What a status other than 200 means."""
    code, message = _said(error)
    status = error.code
    # A reward that is no number will be none the next time either.
    if status in (408, 429) or (status >= 500 and code != "reward_failed"):
        retry_after_s = _seconds(error.headers.get("Retry-After"))
        remedy = "ask fewer processes at once, give more retries, or see the service's log"
        return _Passing(RewardsUnavailable(what, message, remedy, status, code), retry_after_s)
    remedy = _REMEDIES.get(code or "") or _REMEDIES.get(status) or "mend the request as the message says"
    if 300 <= status < 400:
        remedy = f"redirects are not followed, give the URL {error.headers.get('Location')} leads to"
    return RewardsRefused(what, message, remedy, status, code)


def _said(error: urllib.error.HTTPError) -> tuple[str | None, str]:
    """Code and message of an error's body; a proxy's page has neither."""
    try:
        said = contract.parse(error.read())["error"]
        return str(said["code"]), str(said["message"])
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        kind = error.headers.get("Content-Type", "no content type")
        return None, f"{error.reason} (no error of taiji's, {kind})"


def _seconds(retry_after: str | None) -> float | None:
    """Of the header Retry-After: seconds or a date."""
    if retry_after is None:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        then = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    then = then if then.tzinfo else then.replace(tzinfo=timezone.utc)
    return max(0.0, (then - datetime.now(timezone.utc)).total_seconds())


def _pause_s(attempt: int, retry_after_s: float | None) -> float:
    """Doubled each time, with jitter, since all processes of a training ask at the same moment; after what the service
    asked for."""
    own = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt) * random.uniform(0.5, 1.0)
    return min(LONGEST_PAUSE_S, (retry_after_s or 0.0) + own)
