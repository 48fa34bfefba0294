"""One file over HTTP that survives a bad line: resumed where it broke, with bounded, ever longer waits."""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from urllib3.exceptions import HTTPError, MaxRetryError, ProtocolError
from urllib3.util import Retry, Timeout, make_headers, parse_url

from overheard import __version__
from overheard.errors import InputError

CHUNK_BYTES = 1 << 20
# A stretch this long without a break earns the full number of retries again: 30 GB over a poor line break often.
RENEWING_BYTES = 64 << 20
TIMEOUT = Timeout(connect=15, read=60)


def fetch(url: str, part: Path, *, max_retries: int, first_wait: float, console: Console) -> None:
    """Fetch a URL into `part`, going on behind the bytes that the file already holds.

    A server that ignores or refuses the range makes the transfer start over. What was fetched stays in `part` when the
    transfer fails or is interrupted. Proxies are taken from the environment.

    Args:
        url: http or https.
        part: the file to fill; whether its content is right is for the caller to check.
        max_retries: failures in a row of one kind (no connection, broken body, status 429 or 5xx) that are forgiven.
        first_wait: seconds; the first retry is immediate, later ones wait 2, 4, 8, ... times this, at most 60 s.
        console: where the progress bar goes.

    Raises:
        InputError: the address is no http(s) URL, the server refuses it, or the retries are used up.
    """
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise InputError("mirror", repr(url), "give an http:// or https:// address")
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    try:
        with Progress(TextColumn("{task.description}"), *columns, console=console) as progress, _pool(url) as pool:
            _fetch(pool, url, part, _retries(max_retries, first_wait), progress)
    except HTTPError as error:
        reason = getattr(error, "reason", None) or error
        found = f"the transfer failed: {reason.args[0] if isinstance(reason, ProtocolError) else reason}"
        remedy = f"run it again, {_size(part):,} bytes are kept in {part}; or name another mirror"
        raise InputError(url, found, remedy) from error


def _retries(max_retries: int, first_wait: float) -> Retry:
    return Retry(
        total=None,
        connect=max_retries,
        read=max_retries,
        status=max_retries,
        other=max_retries,
        redirect=10,
        backoff_factor=first_wait,
        backoff_max=60,
        status_forcelist=(429, 500, 502, 503, 504),
        # A server may ask for hours.
        respect_retry_after_header=False,
    )


def _fetch(pool: urllib3.PoolManager, url: str, part: Path, budget: Retry, progress: Progress) -> None:
    """urllib3 repeats requests that get no good answer; an answer whose body breaks off is repeated here."""
    task = progress.add_task(url.rsplit("/", 1)[-1], total=None)
    retries = budget
    while True:
        before = _size(part)
        try:
            if _transfer(pool, url, part, retries, progress, task):
                return
        except MaxRetryError:
            raise
        except HTTPError as error:
            if _size(part) - before >= RENEWING_BYTES:
                retries = budget
            retries = retries.increment("GET", url, error=error)
            retries.sleep()


def _transfer(
    pool: urllib3.PoolManager, url: str, part: Path, retries: Retry, progress: Progress, task: TaskID
) -> bool:
    """One request and its body; False when the server cannot go on from here and `part` was emptied for a new start."""
    offset = _size(part)
    # "identity": a server that labels .tar.gz as gzip-encoded would otherwise have it decoded on the way.
    headers = {"User-Agent": f"overheard/{__version__}", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    response = pool.request("GET", url, headers=headers, retries=retries, timeout=TIMEOUT, preload_content=False)
    with response:
        start, total = _content_range(response.headers.get("Content-Range", ""))
        if offset and response.status == 416 and total == offset:
            return True
        if offset and (response.status == 416 or (response.status == 206 and start != offset)):
            part.unlink()
            return False
        if response.status not in (200, 206):
            remedy = "check the address, or name another mirror"
            raise InputError(url, f"the server answered {response.status} {response.reason or ''}", remedy)
        if response.status == 200:
            offset = 0
        length = response.headers.get("Content-Length", "")
        progress.update(task, completed=offset, total=offset + int(length) if length.isdecimal() else None)
        with part.open("ab" if offset else "wb") as file:
            for chunk in response.stream(CHUNK_BYTES, decode_content=False):
                file.write(chunk)
                progress.advance(task, len(chunk))
    return True


def _content_range(header: str) -> tuple[int | None, int | None]:
    """First byte and size of the whole file in `bytes 5-9/10` or `bytes */10` (RFC 9110, section 14.4)."""
    match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(?:(\d+)|\*)", header.strip())
    start, total = match.groups() if match else (None, None)
    return int(start) if start else None, int(total) if total else None


def _pool(url: str) -> urllib3.PoolManager:
    proxy = getproxies().get(urlsplit(url).scheme)
    if not proxy or proxy_bypass(urlsplit(url).hostname or ""):
        return urllib3.PoolManager()
    credentials = parse_url(proxy).auth
    headers = make_headers(proxy_basic_auth=unquote(credentials)) if credentials else None
    return urllib3.ProxyManager(proxy, proxy_headers=headers)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
