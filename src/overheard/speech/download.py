"""LibriSpeech from OpenSLR: fetched, checked against its published checksum, unpacked; whole or not at all.

Source: OpenSLR resource 12, https://www.openslr.org/12 (V. Panayotov, G. Chen, D. Povey, S. Khudanpur, "LibriSpeech: an
ASR corpus based on public domain audio books", ICASSP 2015). Checksums: https://www.openslr.org/resources/12/md5sum.txt.
"""

import gzip
import hashlib
import shutil
import sys
import tarfile
import zlib
from pathlib import Path

from rich.console import Console

from overheard.errors import InputError
from overheard.speech.transfer import fetch

OPENSLR = "https://www.openslr.org/resources/12"
SUBSET_MD5 = {
    "dev-clean": "42e2234ba48799c1f50f24a7926300a1",
    "dev-other": "c8d0bcc9cca99d4f8b62fcc847357931",
    "test-clean": "32fa31d27d2e1cad72775fee3f4849a9",
    "test-other": "fb5a50374b501bb3bac4815ee91d3135",
    "train-clean-100": "2a93770f6d5c6c964bc36631d331a522",
    "train-clean-360": "c0e676e450a7ff2f54aeade5171606fa",
    "train-other-500": "d1a0fd59409feb2c614ce4d30c387708",
}
CORPUS_FOLDER = "LibriSpeech"
# Written into a subset's folder: the checksum of the archive that filled it.
ORIGIN_FILE = ".archive.md5"


def download_subset(
    subset: str,
    destination: Path,
    *,
    mirror: str = OPENSLR,
    md5: str | None = None,
    max_retries: int = 8,
    first_wait: float = 1.0,
    console: Console | None = None,
) -> Path:
    """One LibriSpeech subset as `destination/LibriSpeech/SUBSET`.

    The archive grows as `SUBSET.tar.gz.part`, which a later call goes on with; it becomes `SUBSET.tar.gz` once its
    checksum is right, is unpacked aside, moved into place and deleted. An archive that somebody put at
    `destination/SUBSET.tar.gz` is used and kept. A subset that an earlier call finished is left alone.

    Args:
        subset: one of the seven names in `SUBSET_MD5`.
        destination: made if it does not exist.
        mirror: base address; `/SUBSET.tar.gz` is appended.
        md5: expected checksum, by default the published one.
        max_retries: failures in a row that are forgiven, see `transfer.fetch`.
        first_wait: seconds, see `transfer.fetch`.
        console: where progress and messages go, by default standard error.

    Returns:
        The subset's folder.

    Raises:
        InputError: unknown subset, destination that is a file, folder of another origin in the way, failed transfer,
            wrong checksum (what was fetched is deleted), damaged or unsafe archive.
    """
    if subset not in SUBSET_MD5:
        raise InputError("subset", repr(subset), f"choose one of {', '.join(SUBSET_MD5)}")
    if not hasattr(tarfile, "data_filter"):
        raise InputError("python", sys.version.split()[0], "unpacking archives safely needs 3.11.4 or newer")
    if destination.exists() and not destination.is_dir():
        raise InputError("destination", f"{destination} is a file", "name a folder")
    console = console or Console(stderr=True)
    expected = md5 or SUBSET_MD5[subset]
    folder = destination / CORPUS_FOLDER / subset
    if folder.exists():
        origin = folder / ORIGIN_FILE
        if origin.is_file() and origin.read_text().strip() == expected:
            console.print(f"{subset} is already complete in {folder}", soft_wrap=True, highlight=False)
            return folder
        found = "already there, but not from a finished download of this archive"
        raise InputError(str(folder), found, "use it as it is, or move it away and download again")
    destination.mkdir(parents=True, exist_ok=True)
    archive = destination / f"{subset}.tar.gz"
    fetched = not archive.exists()
    if fetched:
        part = archive.with_name(f"{archive.name}.part")
        url = f"{mirror.rstrip('/')}/{archive.name}"
        fetch(url, part, max_retries=max_retries, first_wait=first_wait, console=console)
        found = _md5(part, console)
        if found != expected:
            part.unlink()
            remedy = "the fetched file was deleted; download again, or name another mirror"
            raise InputError(url, f"checksum {found} instead of {expected}", remedy)
        part.rename(archive)
    elif (found := _md5(archive, console)) != expected:
        remedy = "delete the file to have it downloaded"
        raise InputError(str(archive), f"checksum {found} instead of {expected}", remedy)
    with console.status(f"unpacking {archive.name}"):
        _unpack(archive, subset, expected, destination)
    if fetched:
        archive.unlink()
    return folder


def _md5(path: Path, console: Console) -> str:
    with console.status(f"checking {path.name}"), path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _unpack(archive: Path, subset: str, md5: str, destination: Path) -> None:
    """Unpack aside, then move: a subset's folder is there whole or not at all."""
    # A fixed name, so that what a killed run left behind is found and removed.
    aside = destination / f".{subset}.unpacking"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with tarfile.open(archive, "r:gz") as tar:
            tar.extractall(aside, filter="data")
        corpus = aside / CORPUS_FOLDER
        if not (corpus / subset).is_dir():
            raise InputError(str(archive), f"holds no {CORPUS_FOLDER}/{subset}", "check where the archive is from")
        (corpus / subset / ORIGIN_FILE).write_text(f"{md5}\n")
        (destination / CORPUS_FOLDER).mkdir(exist_ok=True)
        # Every archive brings the same tables (SPEAKERS.TXT, ...); the subset itself goes last.
        for table in sorted(path for path in corpus.iterdir() if path.is_file()):
            table.replace(destination / CORPUS_FOLDER / table.name)
        (corpus / subset).rename(destination / CORPUS_FOLDER / subset)
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        remedy = "nothing was unpacked; delete the archive and download it from another mirror"
        raise InputError(str(archive), f"cannot be unpacked: {error}", remedy) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
