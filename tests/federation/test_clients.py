"""Every utterance belongs to exactly one client, and a client gets nothing but its own."""

from pathlib import Path

import pytest
from lhotse import MonoCut

from overheard.errors import InputError
from overheard.federation.clients import ClientSplit, client_manifests, read_client, split_clients, write_clients


@pytest.mark.parametrize(
    ("split", "names"),
    [
        (ClientSplit(), ["100", "101", "102", "103"]),
        (ClientSplit(speakers_per_client=3), ["100+101+102", "103"]),
        (ClientSplit("iid"), ["iid-0", "iid-1", "iid-2", "iid-3"]),
        (ClientSplit("iid", clients=7), [f"iid-{index}" for index in range(7)]),
    ],
)
def test_every_utterance_has_one_client(tone_cuts: tuple[MonoCut, ...], split: ClientSplit, names: list[str]) -> None:
    clients = split_clients(tone_cuts, split)
    assert [client.name for client in clients] == names
    assert sorted(cut.id for client in clients for cut in client.cuts) == sorted(cut.id for cut in tone_cuts)
    if split.kind == "speaker":
        for client in clients:
            assert {str(cut.supervisions[0].speaker) for cut in client.cuts} == set(client.name.split("+"))
    else:
        assert {len(client.cuts) for client in clients} <= {24 // len(names), 24 // len(names) + 1}
        assert len({str(cut.supervisions[0].speaker) for cut in clients[0].cuts}) > 1


def test_a_split_depends_on_the_seed_alone(tone_cuts: tuple[MonoCut, ...]) -> None:
    first, again = (split_clients(tuple(cuts), ClientSplit("iid", seed=3)) for cuts in (tone_cuts, tone_cuts[::-1]))
    assert first == again
    assert first != split_clients(tone_cuts, ClientSplit("iid", seed=4))


def test_a_client_reads_its_own_manifest(tone_cuts: tuple[MonoCut, ...], tmp_path: Path) -> None:
    clients = split_clients(tone_cuts, ClientSplit())
    write_clients(clients, tmp_path)
    read = [read_client(manifest) for manifest in client_manifests(tmp_path)]
    assert [(each.name, [cut.id for cut in each.cuts]) for each in read] == [
        (each.name, [cut.id for cut in each.cuts]) for each in clients
    ]


def test_more_clients_than_utterances_are_refused(tone_cuts: tuple[MonoCut, ...]) -> None:
    with pytest.raises(InputError, match="clients: 25; the corpus has 24 utterances"):
        split_clients(tone_cuts, ClientSplit("iid", clients=25))
