"""DeepSpeech 2, exactly: frames, their order and strength, active units, features.

The first convolution's update is saturated, but the first recurrence shares dW_ih = Delta' H, whose row space holds
every frame of H, the rectified output of the convolutions. Each step takes the next unknown from another part of the
same update, and each has a test of its own:

    states      row space of dW_hh            linear                          rank
    frames      dW_ih and dW_hh together      a chain of states, each linear  part of each state outside their span
                                              but for one unknown             zeros; both directions agree
    gradients   dW_ih = Delta' H              linear, now that H is known
    active      db of the second convolution  sums of gradients               the sums close
    features    dW of the second convolution  convex, then least squares      both are met

Words and the certificate follow from features as they do after any attack (`complete`).

Nothing is given but the public model and the update of one utterance, or of a few together: their frames share one
span, each utterance has a chain of its own, and from there on they stand one behind the other as if they were one
(`line_up`). Layers below the recurrence must act on each frame alone, so their batch norm must run in evaluation mode.
"""

import time
from dataclasses import asdict, dataclass, field

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from overheard.attacks.deepspeech2.activation_equations import ActivationEquations
from overheard.attacks.deepspeech2.active_units import ActiveUnits, confirm_active, decide_active
from overheard.attacks.deepspeech2.chain import CARRIED
from overheard.attacks.deepspeech2.conv_features import (
    Evidence,
    FeatureSolution,
    make_evidence,
    solve_features,
    start_features,
)
from overheard.attacks.deepspeech2.conv_front import folded, make_front, make_second
from overheard.attacks.deepspeech2.frame_features import solve_from_frames
from overheard.attacks.deepspeech2.frame_order import Stopped, Timeline, Way, order_frames
from overheard.attacks.deepspeech2.joint_frames import JointFrames, fit_frames
from overheard.attacks.deepspeech2.last_frames import fitted_ends, open_frames, small_ends
from overheard.attacks.deepspeech2.line_up import LineUp, line_up
from overheard.attacks.deepspeech2.public_front import hindrance_of, kind_of, numbers_told, run_front
from overheard.attacks.deepspeech2.row_span import RowSpan, find_row_span
from overheard.attacks.deepspeech2.sparse_rays import make_cone
from overheard.attacks.deepspeech2.state_map import make_state_map
from overheard.attacks.deepspeech2.trajectory import make_direction
from overheard.attacks.observation import Observation, Reconstruction
from overheard.attacks.output_layer import relative_rounding
from overheard.attacks.rank import layer_matrix
from overheard.federation.update import ClientUpdate
from overheard.recognition.deepspeech2 import DeepSpeech2
from overheard.recognition.recurrence import Recurrence

LAYER = "recurrences.0"

SPARE_STATES = 8
"""Dimensions of the state that frames must leave free for the first one's strength to be told."""

LEAST_PRECISION = 1e-5
"""Rounding that is allowed for where the spectrum falls off: noise may have been added."""

BLURRED = 3.0
"""Multiples of what noise makes of a direction of the span in the mean, up to which a state may lie outside. Most
states lie much better, so this is tried where no chain comes about otherwise."""

EXACT = 10.0
"""Multiples of the tolerance up to which features count as exact."""

UNTOLD = 0.01
"""Of features that were moved by several times as much and found again from there, the part that may stay moved."""

DROPPED = 1e-3
"""By so much at least dropout makes the units larger that it keeps."""

LIKELY = 10.0
"""Error of features relative to the residual that they leave, at most: features at the edges are known less exactly."""


@dataclass(frozen=True)
class SparseFramesConfig:
    """Settings of the attack.

    Attributes:
        zero_share: part of a frame's units that must be exactly zero for them to certify it.
        state_tolerance: part of a state outside the span up to which it counts as carried on; more where noise asks for
            it.
        most_steps: Gauss-Newton steps on the features, at most.
        attempts: times that features are solved for, with units in doubt decided again in between.
        tolerance: part of the activations that the update may contradict where solving for features stops.
    """

    zero_share: float = 0.35
    state_tolerance: float = 1e-3
    most_steps: int = 40
    attempts: int = 3
    tolerance: float = 3e-5


@dataclass
class _Progress:
    """What was measured on the way; JSON values."""

    diagnostics: dict[str, object] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    _since: float = field(default_factory=time.perf_counter)

    def done(self, step: str, **measured: object) -> None:
        """Close a step, or one more go of it."""
        now = time.perf_counter()
        self.seconds[step] = round(self.seconds.get(step, 0.0) + now - self._since, 3)
        self._since = now
        self.diagnostics |= measured


def attack(observation: Observation, config: SparseFramesConfig, *, generator: torch.Generator) -> Reconstruction:
    """All utterances from the update of a DeepSpeech 2."""
    settings = asdict(config)
    reason = _hindrance(observation)
    if reason is not None:
        return Reconstruction("sparse_frames", reason=reason, settings=settings)
    progress = _Progress()
    found = _recover(observation, config, progress, generator)
    diagnostics = {**progress.diagnostics, "step_seconds": progress.seconds}
    if isinstance(found, str):
        return Reconstruction("sparse_frames", reason=found, settings=settings, diagnostics=diagnostics)
    features, solution = found
    diagnostics |= {
        "feature_residual": solution.residual,
        "frame_residual": solution.frame_residual,
        "feature_steps": solution.steps,
    }
    exact = _exact(solution, config)
    contradicted = f"the features found contradict {solution.residual:.1e} of the activations that the update tells"
    diagnostics["likely_errors"] = [_likely_error(solution)] * len(features)
    return Reconstruction(
        attack="sparse_frames",
        features=features,
        transcripts=(None,) * len(features),
        unique=exact,
        reason=None if exact else contradicted,
        settings=settings,
        diagnostics=diagnostics,
    )


def _exact(solution: FeatureSolution, config: SparseFramesConfig) -> bool:
    return solution.residual <= EXACT * config.tolerance


def _likely_error(solution: FeatureSolution) -> float:
    return max(solution.change, LIKELY * solution.residual)


def _hindrance(observation: Observation) -> str | None:
    """Why the attack does not apply; None when it does."""
    model, update = observation.model, observation.update
    if not isinstance(model, DeepSpeech2):
        return f"made for DeepSpeech 2; this model is a {type(model).__name__}"
    suffixes = ("", "_reverse")
    needed = [f"{LAYER}.weight_{kind}_l0{suffix}" for kind in ("ih", "hh") for suffix in suffixes]
    needed += ["convolutions.1.weight", "convolutions.1.bias"]
    for name in needed:
        if name not in update.tensors:
            return f"the update holds no {name}"
    if update.protocol.local_steps > 1:
        return f"{update.protocol.local_steps} local steps move the convolutions, and the frames with them"
    return None


def _recover(
    observation: Observation, config: SparseFramesConfig, progress: _Progress, generator: torch.Generator
) -> tuple[tuple[Tensor, ...], FeatureSolution] | str:
    """Features of each utterance and how they were solved for together, or why there are none."""
    model, update = observation.model, observation.update
    assert isinstance(model, DeepSpeech2)
    matrix = layer_matrix(update, LAYER, model.recurrences[0])
    assert matrix is not None
    precision = relative_rounding(model, update, f"{LAYER}.weight_ih_l0")
    span = find_row_span(matrix, max(precision, LEAST_PRECISION), generator)
    count, utterances = span.rank.rank, update.protocol.num_utterances
    most = min(min(matrix.shape) - 1, model.config.hidden_size - SPARE_STATES + utterances - 1)
    progress.done("rank", output_frames=count, rank_margin=span.rank.margin)
    if count == 0 or count > most:
        return f"the recurrence was shown {count} frames or more; up to {most} can be told apart"
    declared = observation.prior.num_frames
    if declared is not None and sum(map(model.config.output_length, declared)) != count:
        return f"no utterance of the declared length gives {count} output frames"
    ways = _ways(model, update, span)
    timeline = _timeline(span, ways, config, generator)
    if isinstance(timeline, Stopped):
        progress.done("order", frames_ordered=[timeline.forward, timeline.backward])
        return timeline.reason
    progress.done(
        "order",
        frames_certified=timeline.certified,
        state_residual=timeline.residual,
        frame_disagreement=timeline.disagreement,
        frames_by_utterance=list(timeline.lengths),
    )
    front = kind_of(model, update.protocol.mode)
    partly = f"the convolutions' outputs came back, {_listed(timeline.lengths)} frames in order, but "
    hindrance = hindrance_of(front)
    if hindrance is not None:
        return f"{partly}not the features: {hindrance}"
    num_frames = _input_frames(model, timeline.lengths, declared)
    if num_frames is None:
        return f"no utterances of the declared lengths give {_listed(timeline.lengths)} output frames"
    weight = update.tensors["convolutions.1.weight"]
    told = numbers_told(timeline.coordinates @ span.basis, None if front.scale is None else weight)
    unknown = sum(num_frames) * model.front_end.num_features
    if told < unknown:
        channels = f"too few with {model.config.channels} channels"
        return f"{partly}not the features: the update says at most {told} numbers about {unknown}, {channels}"
    utterances_at = line_up(model.config, num_frames, matrix.device)
    spare = open_frames(model.config, utterances_at, timeline.lengths) if declared is None else (0,) * utterances
    if front.scale is None:
        frames_of = run_front(model, update.protocol.mode)
        nothing = matrix.new_zeros(len(utterances_at.features), model.front_end.num_features)
        solution = solve_from_frames(
            frames_of, timeline.coordinates @ span.basis, nothing, config.most_steps, generator
        )
        progress.done("features", feature_residual=solution.residual, feature_steps=solution.steps)
        if solution.change > UNTOLD:
            differ = f"found again from elsewhere, those differ by {100 * solution.change:.2g} %"
            return f"{partly}they do not tell the features: {differ}"
        lacking = small_ends(solution.features, utterances_at, spare, _likely_error(solution))
    else:
        fitted = fit_frames(matrix / span.row_noise[:, None], span.basis, timeline, ways)
        progress.done("frames", pair_misfit=list(fitted.misfit))
        solution, evidence = _features(
            model, update, matrix, span.basis, fitted, utterances_at, config, progress, front.scale
        )
        if _exact(solution, config):
            lacking = small_ends(solution.features, utterances_at, spare, _likely_error(solution))
        else:
            solution, lacking = fitted_ends(evidence, solution, utterances_at, spare, config.tolerance)
        progress.done("last frames")
    features = tuple(
        solution.features[start : end - count] for (start, end), count in zip(utterances_at.spans, lacking, strict=True)
    )
    return features, solution


def _timeline(
    span: RowSpan, ways: tuple[Way, Way], config: SparseFramesConfig, generator: torch.Generator
) -> Timeline | Stopped:
    """All frames in order, by the strictest tolerance at which they come about."""
    cone = make_cone(span.basis, config.zero_share, span.blur)
    blurred = min(BLURRED * max(way.direction.blur for way in ways), CARRIED)
    for tolerance in (config.state_tolerance, max(config.state_tolerance, blurred)):
        timeline = order_frames(span.basis, cone, ways, tolerance, generator)
        if isinstance(timeline, Timeline):
            break
    return timeline


def _features(
    model: DeepSpeech2,
    update: ClientUpdate,
    matrix: Float[Tensor, "R C"],
    basis: Float[Tensor, "P C"],
    fitted: JointFrames,
    utterances: LineUp,
    config: SparseFramesConfig,
    progress: _Progress,
    scale: float,
) -> tuple[FeatureSolution, Evidence]:
    """Features from frames in order, with their strengths, and what they were solved from; `scale` as in `FrontKind`.

    Where some units were taken for active wrongly, the features come near the truth but do not fit; what they predict
    then tells those units apart, and the features are solved for again.
    """
    shape = (model.config.channels, model.config.num_frequencies, len(basis))
    num_features = model.front_end.num_features
    frames, gradients = _frames_and_gradients(model, matrix, basis, fitted.coordinates, shape, scale)
    noise = fitted.noise.T.reshape(shape) / scale
    bias = update.gradient("convolutions.1.bias")
    decided = decide_active(frames, noise, gradients, bias, model.config.clip)
    progress.done("active", units_changed=decided.changed, bias_residual=decided.residual)
    evidence = _evidence(model, update, frames, gradients, decided, utterances, scale > 1 + DROPPED)
    start = start_features(evidence, len(utterances.features), num_features)
    progress.done("start", channels_left_out=int((~decided.sure).sum()))
    best = solve_features(evidence, start, config.most_steps, config.tolerance)
    progress.done("features")
    attempts = 1
    while attempts < config.attempts and not _exact(best, config):
        predicted = evidence.predict(best.features)[..., utterances.outputs]
        confirmed = confirm_active(decided.active, frames, noise, gradients, bias, predicted)
        anew = _evidence(model, update, frames, gradients, confirmed, utterances, scale > 1 + DROPPED)
        solved = solve_features(anew, best.features, config.most_steps, config.tolerance)
        attempts += 1
        changed = int((confirmed.active != decided.active).sum())
        progress.done(f"features {attempts}", units_confirmed=changed, channels_left_out=int((~confirmed.sure).sum()))
        if solved.residual > 0.9 * best.residual:
            break
        best, decided, evidence = solved, confirmed, anew
    progress.done("features", attempts=attempts)
    return best, evidence


def _frames_and_gradients(
    model: DeepSpeech2,
    matrix: Float[Tensor, "R C"],
    basis: Float[Tensor, "P C"],
    coordinates: Float[Tensor, "P P"],
    shape: tuple[int, int, int],
    scale: float,
) -> tuple[Float[Tensor, "O J P"], Float[Tensor, "O J P"]]:
    """H in front of dropout, and the gradient that each unit passes on to the convolution if it is active and kept.

    Delta' A R = dW_ih is solved for Delta, and W_ih' delta_t is the gradient by frame t.
    """
    delta = torch.linalg.solve(coordinates, matrix @ basis.T, left=False)  # (R, P)
    layer = model.recurrences[0]
    weights = torch.cat([layer.weight_ih_l0, layer.weight_ih_l0_reverse]).detach().double()  # pyright: ignore
    norm, _ = folded(model, 1)
    reached = (weights.T @ delta).reshape(shape)
    return (coordinates @ basis).T.reshape(shape) / scale, reached * (scale * norm)[:, None, None]


def _evidence(
    model: DeepSpeech2,
    update: ClientUpdate,
    frames: Float[Tensor, "O J P"],
    gradients: Float[Tensor, "O J P"],
    decided: ActiveUnits,
    utterances: LineUp,
    dropped: bool,
) -> Evidence:
    """What is known for sure; channels in doubt are left out of the equations unless most are."""
    front = make_front(model, utterances)
    grid = front.convolve(front.weight.new_zeros(len(utterances.features), model.front_end.num_features)).shape
    weight = update.gradient("convolutions.1.weight")
    trusted = decided.sure if int(decided.sure.sum()) > len(decided.sure) // 2 else torch.ones_like(decided.sure)

    def placed(values: Shaped[Tensor, "O J P"]) -> Shaped[Tensor, "O J Q"]:
        spread = values.new_zeros(*values.shape[:2], len(utterances.outputs))
        spread[..., utterances.outputs] = values
        return spread

    told = placed(gradients * (decided.active & trusted[:, None, None]))
    equations = ActivationEquations(front, told, weight, (grid[1], grid[2]))
    seen = trusted[:, None, None] & utterances.outputs
    return make_evidence(front, make_second(model), equations, placed(frames), placed(decided.active), seen, dropped)


def _input_frames(
    model: DeepSpeech2, lengths: tuple[int, ...], known: tuple[int, ...] | None
) -> tuple[int, ...] | None:
    """For each number of output frames the most input frames that give it, or a declared number that does."""
    left, found = list(known or ()), []
    for length in lengths:
        frames = model.config.minimum_frames
        while model.config.output_length(frames + 1) <= length:
            frames += 1
        if known is not None:
            frames = next((each for each in left if model.config.output_length(each) == length), None)
            if frames is None:
                return None
            left.remove(frames)
        found.append(frames)
    return tuple(found)


def _listed(lengths: tuple[int, ...]) -> str:
    return " and ".join(map(str, lengths))


def _ways(model: DeepSpeech2, update: ClientUpdate, span: RowSpan) -> tuple[Way, Way]:
    """Both directions; all states but last ones were carried on, which says the rank where no gap shows it.

    What a row of the recurrent weight's update sums is as rough as in the row of the input weight's beside it.
    """
    layer, utterances = model.recurrences[0], update.protocol.num_utterances
    assert isinstance(layer, Recurrence)

    def way(suffix: str, noise: Float[Tensor, " K"]) -> Way:
        into_gates, recurrent = (
            update.gradient(f"{LAYER}.weight_{kind}_l0{suffix}") / noise[:, None] for kind in ("ih", "hh")
        )
        direction = make_direction(layer, suffix, recurrent, len(span.basis) - utterances)
        return Way(direction, make_state_map(layer.cell, into_gates, recurrent, span.basis, utterances))

    forward, backward = span.row_noise.chunk(2)
    return way("", forward), way("_reverse", backward)
