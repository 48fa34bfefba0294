"""Numbers and verdicts as a reader meets them: how they are rounded, spaced and put into a sentence."""

import math

from overheard.metrics.intervals import Estimate, Rate
from overheard.report.summary import Summary

NO_BREAK = "\u00a0"
MINUS = "\u2212"
TIMES = "\u00d7"
ABSENT = "\u2013"
EPSILON, DELTA = "Epsilon", "Delta"
PRICE = "WER of the recogniser"
"""What a defence costs, as tables and figures call it."""
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def defence_title(defence: str | None) -> str:
    """How a defence is called in prose."""
    return {None: "defence not stated", "none": "no defence"}.get(defence, defence or "")


def condition_title(field: str) -> str:
    """The heading of a condition's field."""
    return {"kind": "Update", "local_steps": "Local steps"}.get(field, field.capitalize())


def number(value: float | int | None, digits: int = 3) -> str:
    """A value to so many significant digits; very large and very small ones as a power of ten."""
    if value is None or math.isnan(value):
        return ABSENT
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}".replace("-", MINUS)
    if 1e-3 <= abs(value) < 1e5:
        decimals = max(digits - 1 - math.floor(math.log10(abs(value))), 0)
        return f"{value:,.{decimals}f}".replace("-", MINUS)
    mantissa, exponent = f"{value:.{max(digits - 2, 0)}e}".split("e")
    return f"{mantissa}{NO_BREAK}{TIMES}{NO_BREAK}10{str(int(exponent)).translate(SUPERSCRIPTS)}".replace("-", MINUS)


def power_of_ten(value: float) -> str:
    """A whole power of ten, as an axis is labelled."""
    return "10" + str(round(math.log10(value))).translate(SUPERSCRIPTS)


def quantity(value: float | int | None, unit: str) -> str:
    """A value with its unit, or the mark for no value."""
    return ABSENT if value is None else f"{number(value)}{NO_BREAK}{unit}"


def percent(share: float) -> str:
    """A share of 1 in per cent; 0 and 100 are said of nothing but none and all."""
    if share in (0.0, 1.0):
        return f"{100 * share:.0f}{NO_BREAK}%"
    # Error rates go beyond 1.
    return f"{100 * share if share > 1 else min(max(100 * share, 0.1), 99.9):.1f}{NO_BREAK}%"


def interval(rate: Rate) -> str:
    """The ends of the 95 % interval, as in 78.7 to 98.2 %."""
    return f"{percent(rate.low).removesuffix(f'{NO_BREAK}%')} to {percent(rate.high)}"


def rate_text(rate: Rate) -> str:
    """A rate and its interval in one phrase."""
    return f"{percent(rate.value)}, 95{NO_BREAK}% interval {interval(rate)}"


def estimate_text(estimate: Estimate | None, unit: str = "") -> str:
    """A median or ratio with the ends of its interval, as in 0.26 (0.15 to 0.37) s."""
    if estimate is None:
        return ABSENT
    text = f"{number(estimate.value)} ({number(estimate.low)} to {number(estimate.high)})"
    return f"{text}{NO_BREAK}{unit}" if unit else text


def share_text(estimate: Estimate | None) -> str:
    """A share of 1 with its interval, in per cent."""
    if estimate is None:
        return ABSENT
    low = percent(estimate.low).removesuffix(f"{NO_BREAK}%")
    return f"{percent(estimate.value)} ({low} to {percent(estimate.high)})"


def median_share(estimate: Estimate | None) -> str:
    """A median share of 1, with its interval where records differ."""
    if estimate is not None and estimate.low == estimate.high:
        return percent(estimate.value)
    return share_text(estimate)


def counted(count: int, noun: str) -> str:
    """1 utterance, 2 utterances."""
    return f"{count:,}{NO_BREAK}{noun}{'' if count == 1 else 's'}"


def sentence(text: str) -> str:
    """A note of somebody else's as a sentence: a capital and a full stop."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def headline(summary: Summary) -> str:
    """The first thing a reader is told."""
    rate = summary.rate
    if rate is None:
        return "No utterance was attacked"
    if rate.successes == 0 and rate.trials == 1:
        return "Nothing was recovered"
    if summary.repeated:
        first = f"{rate.successes:,}" if rate.successes else "None"
        return f"{first} of {counted(rate.trials, 'attack')} recovered the utterance"
    if rate.successes == 0:
        return f"None of {counted(rate.trials, 'utterance')} was recovered"
    return f"{rate.successes:,} of {counted(rate.trials, 'utterance')} recovered"


def model_sentence(summary: Summary) -> str:
    """What an attack on one model brought back."""
    rate = summary.rate
    if rate is None:
        return "No utterance of this model was attacked."
    if summary.repeated:
        tried = f"{counted(rate.trials, 'attack')} brought the utterance back whole"
    else:
        tried = f"{counted(rate.trials, 'utterance')} came back whole"
    if rate.successes == 0:
        parts = [f"None of {tried} ({rate_text(rate)})."]
    else:
        parts = [
            f"{rate.successes:,} of {tried} ({rate_text(rate)}){_length_range(summary)}.",
            f"Their median feature error is {estimate_text(summary.median_mae)}.",
        ]
    if summary.in_part or summary.failed:
        parts.append(f"{_shortfall(summary)}.")
    if summary.transcripts_read:
        said = f"{summary.transcripts_exact:,} of {counted(summary.transcripts_read, 'transcript')} read"
        of_words = "" if summary.words is None else f", {share_text(summary.words)} of the words"
        parts.append(f"{said} letter for letter{of_words}.")
    if summary.median_seconds is not None:
        parts.append(f"The median attack took {estimate_text(summary.median_seconds, 's')}.")
    return " ".join(parts)


def _length_range(summary: Summary) -> str:
    if summary.shortest is None or summary.longest is None:
        return ""
    if summary.shortest == summary.longest:
        return f", {quantity(summary.shortest, 's')} long"
    return f", {number(summary.shortest)} to {quantity(summary.longest, 's')} long"


def _shortfall(summary: Summary) -> str:
    parts = [
        f"{count:,} {words}"
        for count, words in ((summary.in_part, "came back in part or with errors"), (summary.failed, "not at all"))
        if count
    ]
    if not summary.in_part:
        return f"{summary.failed:,} did not come back"
    return ", ".join(parts)


def exposure_sentence(exposed: int, layers: int) -> str:
    """What the rank scan of one model comes to."""
    if exposed == 0:
        return f"None of {counted(layers, 'layer')} gives away the span of its inputs."
    verb = "gives away the span of its inputs" if exposed == 1 else "give away the span of their inputs"
    return f"{exposed:,} of {counted(layers, 'layer')} {verb}."
