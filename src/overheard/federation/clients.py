"""Who the clients are: speakers who keep their speech, groups of them, or shares drawn at random for contrast."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lhotse import CutSet, MonoCut

from overheard.errors import InputError
from overheard.recognition.configuration import check_choice, check_whole
from overheard.speech.corpus import load_corpus

SplitKind = Literal["speaker", "iid"]
MANIFEST_SUFFIX = ".jsonl.gz"


@dataclass(frozen=True)
class ClientSplit:
    """How a corpus falls into clients.

    Attributes:
        kind: "speaker" gives each client the whole speech of its speakers; "iid" draws utterances at random, which no
            deployment does, for contrast.
        speakers_per_client: of a speaker split; the last client may have fewer.
        clients: of an i.i.d. split; None for as many as there would be by speaker.
        seed: of the draw.

    Raises:
        InputError: an unknown kind, or a number below 1.
    """

    kind: SplitKind = "speaker"
    speakers_per_client: int = 1
    clients: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("split", self.kind, ("speaker", "iid"))
        check_whole("speakers_per_client", self.speakers_per_client, 1, 2**31)
        if self.clients is not None:
            check_whole("clients", self.clients, 1, 2**31)


@dataclass(frozen=True)
class ClientSpeech:
    """What one client holds: its name and its utterances, by id."""

    name: str
    cuts: tuple[MonoCut, ...]


def split_clients(cuts: Sequence[MonoCut], split: ClientSplit) -> tuple[ClientSpeech, ...]:
    """Every utterance goes to exactly one client; clients come in the order of their names.

    Raises:
        InputError: more clients than utterances.
    """
    by_speaker: dict[str, list[MonoCut]] = {}
    for cut in sorted(cuts, key=lambda each: each.id):
        by_speaker.setdefault(str(cut.supervisions[0].speaker), []).append(cut)
    speakers = sorted(by_speaker)
    groups = [
        speakers[at : at + split.speakers_per_client] for at in range(0, len(speakers), split.speakers_per_client)
    ]
    if split.kind == "speaker":
        return tuple(
            ClientSpeech("+".join(group), tuple(cut for speaker in group for cut in by_speaker[speaker]))
            for group in groups
        )
    number = split.clients or len(groups)
    if number > len(cuts):
        raise InputError("clients", number, f"the corpus has {len(cuts)} utterances; ask for no more clients than that")
    shuffled = random.Random(split.seed).sample(sorted(cuts, key=lambda each: each.id), len(cuts))
    digits = len(str(number - 1))
    return tuple(
        ClientSpeech(f"iid-{index:0{digits}d}", tuple(sorted(shuffled[index::number], key=lambda each: each.id)))
        for index in range(number)
    )


def write_clients(clients: Sequence[ClientSpeech], folder: Path) -> None:
    """A manifest for each client, all that it will be given: FOLDER/NAME.jsonl.gz."""
    folder.mkdir(parents=True, exist_ok=True)
    for client in clients:
        CutSet.from_cuts(client.cuts).to_file(folder / f"{client.name}{MANIFEST_SUFFIX}")


def client_manifests(folder: Path) -> list[Path]:
    """What `write_clients` wrote, in the order of the clients' names."""
    return sorted(folder.glob(f"*{MANIFEST_SUFFIX}"), key=client_name)


def client_name(manifest: Path) -> str:
    """The client that a manifest is of."""
    return manifest.name.removesuffix(MANIFEST_SUFFIX)


def read_client(manifest: Path) -> ClientSpeech:
    """One client's speech from its manifest.

    Raises:
        InputError: no manifest of cuts.
    """
    # A client's own: its audio lies wherever the client keeps it.
    return ClientSpeech(client_name(manifest), load_corpus(manifest, anywhere=True).cuts)
