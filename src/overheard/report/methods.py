"""A paragraph on methods from a run's settings, and BibTeX of what the run used: both for a paper."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from overheard.audit.records import AuditRecord
from overheard.metrics.alignment import CLOSE
from overheard.report.tables import latex
from overheard.report.titles import registry_name, whole_title

REFERENCES = Path(__file__).parent / "templates" / "references.bib"
MODELS = {"deepspeech1": "hannun2014", "deepspeech2": "amodei2016", "transformer": "vaswani2017"}
ATTACKS = {"hessian_free": "dang2022", "matching": "zhu2019"}
ENCODERS = {"resemblyzer": "wan2018"}
VOCODERS = {"vocos": "siuzdak2024"}


def references_used(config: dict[str, Any], records: Sequence[AuditRecord]) -> list[str]:
    """Keys of references.bib that this run's text cites."""
    used = ["overheard", "graves2006", "wilson1927", "efron1979"]
    used += [MODELS[name] for name in _distinct(registry_name(record.model) for record in records) if name in MODELS]
    used += [ATTACKS[attack] for attack in _distinct(record.attack for record in records) if attack in ATTACKS]
    if _is_librispeech(config):
        used.append("panayotov2015")
    if any(record.epsilon is not None for record in records):
        used.append("mironov2019")
    heard = [hearing for record in records for hearing in record.hearings]
    if any(record.example for record in records):
        used.append("perraudin2013")
    if any(hearing.stoi is not None for hearing in heard):
        used.append("taal2011")
    used += [ENCODERS[name] for name in _distinct(hearing.encoder for hearing in heard) if name in ENCODERS]
    used += [VOCODERS[name] for name in _distinct(hearing.vocoder for hearing in heard) if name in VOCODERS]
    if any((hearing.recogniser or "").startswith("whisper:") for hearing in heard):
        used.append("radford2023")
    return list(dict.fromkeys(used))


def bibtex(config: dict[str, Any], records: Sequence[AuditRecord]) -> str:
    """Entries of what was used, in the order of references.bib."""
    text = REFERENCES.read_text(encoding="utf-8")
    entries = {entry[entry.index("{") + 1 : entry.index(",")]: entry for entry in text.strip().split("\n\n")}
    used = set(references_used(config, records))
    version = latex(str(config["versions"].get("overheard", "unknown")))
    return "\n\n".join(entry.replace("VERSION", version) for key, entry in entries.items() if key in used) + "\n"


def methods(config: dict[str, Any], records: Sequence[AuditRecord]) -> str:
    """A paragraph of LaTeX: what was attacked, with what, knowing what, scored how."""
    used = set(references_used(config, records))

    def cited(text: str, *keys: str) -> str:
        found = [key for key in keys if key in used]
        return f"{latex(text)}~\\cite{{{','.join(found)}}}" if found else latex(text)

    models = [
        cited(whole_title(model), MODELS.get(registry_name(model), "")) for model in _distinct(r.model for r in records)
    ]
    attacks = [cited(attack, ATTACKS.get(attack, "")) for attack in _distinct(record.attack for record in records)]
    defences = [latex(name) for name in _distinct(record.defence for record in records) if name != "none"]
    corpus = config["corpus"]
    speech = cited("LibriSpeech", "panayotov2015") if _is_librispeech(config) else latex("the corpus")
    parts = [
        f"We audited {_listed(models) or 'no model'} with {cited('overheard', 'overheard')}, version "
        f"{latex(str(config['versions'].get('overheard', 'unknown')))}, on {latex(str(corpus.get('utterances', 0)))} "
        f"utterances of {latex(str(corpus.get('speakers', 0)))} speakers from {speech}.",
        _shared(records),
        f"The attacker was given {latex('; '.join(map(str, config['threat_model']['given'])) or 'nothing')}, and not "
        f"given {latex('; '.join(map(str, config['threat_model']['not_given'])) or 'anything else')}.",
        f"The attacks were {_listed(attacks) or 'none'}." if attacks else "",
        f"The defences were {_listed(defences)}." if defences else "No defence was in place.",
        f"The loss was {cited('CTC', 'graves2006')}. An utterance counts as recovered when all of its frames came back "
        f"with a mean absolute error of the features below {CLOSE:g}; utterances that failed count as not recovered.",
        f"Rates carry {cited('Wilson score intervals', 'wilson1927')}, medians and error rates "
        f"{cited('percentile bootstrap intervals', 'efron1979')}, both at 95\\,\\%.",
        _heard(config, records, used),
        f"All computations ran on {latex(str(config['device']))} with {latex(str(config['threads']))} threads; "
        f"versions were {latex(', '.join(f'{name} {version}' for name, version in config['versions'].items()))}.",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _shared(records: Sequence[AuditRecord]) -> str:
    """How clients trained, as far as all did so alike."""
    said = []
    for field, words in (
        ("kind", "shared the {}"),
        ("mode", "trained in {} mode"),
        ("batch", "had {} utterance(s) in a batch"),
        ("local_steps", "took {} local step(s)"),
        ("seed", "used seed {}"),
    ):
        values = _distinct(getattr(record, field) for record in records)
        if len(values) == 1:
            said.append(words.format(latex(str(values[0]))))
    return f"Clients {_listed(said)}." if said else ""


def _heard(config: dict[str, Any], records: Sequence[AuditRecord], used: set[str]) -> str:
    listening = config.get("listening")
    if not isinstance(listening, dict):
        return ""
    phase = r"~\cite{perraudin2013}" if "perraudin2013" in used else ""
    vocoders = _distinct(hearing.vocoder for record in records for hearing in record.hearings)
    again = [f"{latex(name)}~\\cite{{{VOCODERS[name]}}}" for name in vocoders if name in VOCODERS]
    part = "in part " if len(vocoders) > len(again) else ""
    then = f" and {part}said again by the neural vocoder {_listed(again)}" if again else ""
    parts = [f"Audio was made from features by fast Griffin-Lim{phase}{then}."]
    encoder, recogniser = listening.get("encoder"), listening.get("recogniser")
    if encoder:
        key = ENCODERS.get(str(encoder))
        cite = f"~\\cite{{{key}}}" if key else ""
        parts.append(
            f"Voices were compared by {latex(str(encoder))}{cite}, with other utterances of "
            f"{latex(str(listening.get('speakers_enrolled')))} speakers enrolled."
        )
    if recogniser:
        cite = r"~\cite{radford2023}" if str(recogniser).startswith("whisper:") else ""
        name = str(recogniser) if cite else "a recogniser trained apart from the models attacked"
        parts.append(f"Words in the audio were transcribed by {latex(name)}{cite}.")
    return " ".join(parts)


def _is_librispeech(config: dict[str, Any]) -> bool:
    return "librispeech" in str(config["corpus"].get("path", "")).lower()


def _distinct(values: Any) -> list[Any]:
    return [value for value in dict.fromkeys(values) if value is not None]


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1] if parts else ""
