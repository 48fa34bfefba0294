"""A SuperLink and two SuperNodes on loopback, with TLS and node authentication: the rounds are those of one process."""

import datetime
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="Flower is not installed: overheard[federated]")

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fleet import plan_of, run, same_weights
from tone_corpus import tiny_model

from overheard.federation.deployment import write_deployment
from overheard.federation.quiet import SETTINGS
from overheard.recognition.checkpoint import last_checkpoint
from overheard.recognition.models import build_model

BIN = Path(sys.executable).parent


def test_two_nodes_with_tls_and_authentication(tones: Path, tmp_path: Path) -> None:
    plan = plan_of(tones, speakers=("100", "101"), clients_per_round=2, rounds=1)
    simulated = run(plan, tmp_path / "simulated")
    write_deployment(build_model(tiny_model()), plan.settings, None, tmp_path / "run", tmp_path / "app")
    port, nodes = free_port(), [free_port(), free_port()]
    write_certificate(tmp_path)
    environment = {**os.environ, **SETTINGS, "FLWR_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "config.toml").write_text(
        f'[superlink]\ndefault = "ours"\n[superlink.ours]\naddress = "127.0.0.1:{port}"\n'
        f'root-certificates = "{tmp_path / "ca.crt"}"\n'
    )
    tls = [*("--ssl-ca-certfile", "ca.crt"), *("--ssl-certfile", "server.crt"), *("--ssl-keyfile", "server.key")]
    with ExitStack() as stack:

        def start(*command: str) -> subprocess.Popen[bytes]:
            return stack.enter_context(service(tmp_path, environment, *command))

        start("flower-superlink", *tls, "--enable-supernode-auth", "--port", str(port))
        wait_for(port)
        for index, client in enumerate(("100", "101")):
            write_key(tmp_path, client)
            flwr(tmp_path, environment, "supernode", "register", f"{client}.pub", "ours")
            speech = tmp_path / "simulated" / "clients" / f"{client}.jsonl.gz"
            start(
                *("flower-supernode", "--superlink", f"127.0.0.1:{port}", "--root-certificates", "ca.crt"),
                *("--auth-supernode-private-key", client, "--port", str(nodes[index])),
                *("--node-config", f'speech="{speech}"'),
            )
        flwr(tmp_path, environment, "run", "app", "ours")
        end = time.monotonic() + 240
        while not (tmp_path / "run" / "checkpoints" / "step-000000001").is_dir():
            assert time.monotonic() < end, logs(tmp_path)
            time.sleep(0.2)
    done = last_checkpoint(tmp_path / "run")
    assert done is not None
    assert same_weights(done.model, simulated.model)


@contextmanager
def service(folder: Path, environment: dict[str, str], *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A background program with a process group of its own, all of which ends with the block."""
    with (folder / f"{command[0]}-{len(list(folder.glob('*.log')))}.log").open("wb") as log:
        started = subprocess.Popen(
            [str(BIN / command[0]), *command[1:]],
            cwd=folder,
            env={**environment, "PATH": f"{BIN}:{environment['PATH']}"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield started
        finally:
            os.killpg(started.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                started.wait(10)
            with suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)


def flwr(folder: Path, environment: dict[str, str], *command: str) -> None:
    done = subprocess.run([str(BIN / "flwr"), *command], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr + logs(folder)


def logs(folder: Path) -> str:
    return "\n".join(f"{path.name}:\n{path.read_text(errors='replace')[-3000:]}" for path in folder.glob("*.log"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError("nothing listens")


def write_certificate(folder: Path) -> None:
    """An authority of our own, and its certificate for 127.0.0.1."""
    now = datetime.datetime.now(datetime.UTC)
    keys = {name: ec.generate_private_key(ec.SECP384R1()) for name in ("ca", "server")}
    names = {name: x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"test {name}")]) for name in keys}
    for name, key in keys.items():
        builder = (
            x509.CertificateBuilder()
            .subject_name(names[name])
            .issuer_name(names["ca"])
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=name == "ca", path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
            )
        )
        signed = builder.sign(keys["ca"], hashes.SHA384())
        (folder / f"{name}.crt").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        (folder / f"{name}.key").write_bytes(private_bytes(key, serialization.PrivateFormat.PKCS8))


def write_key(folder: Path, name: str) -> None:
    """A node's key pair, as ssh-keygen -t ecdsa -b 384 writes it."""
    key = ec.generate_private_key(ec.SECP384R1())
    (folder / name).write_bytes(private_bytes(key, serialization.PrivateFormat.OpenSSH))
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    (folder / f"{name}.pub").write_bytes(public)


def private_bytes(key: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
