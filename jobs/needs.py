"""What a job needs at least of its worker's disk and memory, from tensor shapes and the request alone. No torch.

Lower estimates: a job that would fit must not be refused. Each counts what the core holds at once at its largest
moments, and leaves out what is small or unknown before the work: the text, a chunk's activations, the allocator's
slack. What the system can drop and read again is no need either: weights stored in float32 are mapped, not copied.
"""

from dataclasses import dataclass

from flattengpt_core.checkpoint import CheckpointInfo, weight_files
from flattengpt_core.depth import layers_to_keep
from jobs.spec import CalibrationSpec, JobSpec, RecoverySpec

FOLDS = 2
MEASURED_TOKENS, LACO_TOKENS = 4096, 1024
PASS_TOKENS = 4096
EVALUATED_TOKENS = 4096
"""What the core's own constants of these meanings are; a test holds them together."""

PYTHON_BYTES = 256 * 2**20
"""Python, torch and transformers, imported: 370 MiB were measured."""

_FLOAT32, _FLOAT64 = 4, 8
_SAVED_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Shape:
    """A checkpoint's sizes. Those that its headers do not tell (GGUF) are 0.

    layer_parameters: of one layer. stored_bytes: a parameter's, 2 to 4. attended, key_values: the width of all query
    heads and of all key/value heads.
    """

    layers: int
    parameters: int
    layer_parameters: int
    stored_bytes: float
    hidden: int
    channels: int
    attended: int
    key_values: int
    vocabulary: int
    gguf: bool

    def kept_parameters(self, layers: int) -> int:
        """At least so many are left with so many layers."""
        return self.parameters * layers // self.layers


@dataclass(frozen=True)
class Aim:
    """How many layers are left. first: in the first checkpoint that is written. last: in the result, at least."""

    first: int
    last: int


def shape_of(info: CheckpointInfo) -> Shape:
    """The sizes of an inspected checkpoint."""
    if info.format == "gguf":
        return Shape(info.num_layers, info.parameters, 0, _FLOAT32, 0, 0, 0, 0, 0, gguf=True)
    config = info.config
    hidden, channels, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    head = config.get("head_dim") or hidden // heads
    attended, key_values = heads * head, (config.get("num_key_value_heads") or heads) * head
    vocabulary = config.get("vocab_size")
    return Shape(
        layers=info.num_layers,
        parameters=info.parameters,
        layer_parameters=hidden * (2 * attended + 2 * key_values + 3 * channels),
        stored_bytes=sum(file.stat().st_size for file in weight_files(info.path)) / info.parameters,
        hidden=hidden,
        channels=channels,
        attended=attended,
        key_values=key_values,
        vocabulary=vocabulary if isinstance(vocabulary, int) else 0,
        gguf=False,
    )


def aim_of(spec: JobSpec, layers: int) -> Aim:
    """What the request aims at in a model of so many layers; a quality to hold is first tried at half of them.

    Raises:
        InvalidTarget: as `JobSpec.goal`.
    """
    if spec.target is not None:
        return Aim(first=1 + (layers - 1) // 2, last=1)
    kept = layers_to_keep(layers, sparsity=spec.sparsity, layers=spec.layers)
    return Aim(kept, kept)


def disk_bytes(shape: Shape, spec: JobSpec, *, stored_here: bool) -> int:
    """What the job's own files come to at their largest moment.

    Finished layers and the checkpoint that is made of them; later the checkpoint, what training saves and its result,
    and the stored copy. An untrained result is the checkpoint itself, by links.

    Args:
        stored_here: whether the artifact store is on the same disk.
    """
    aim = aim_of(spec, shape.layers)
    saved = _SAVED_BYTES.get(spec.dtype, shape.stored_bytes)
    source = shape.parameters * _FLOAT32 if shape.gguf else 0
    compressing = aim.first * shape.layer_parameters * shape.stored_bytes + shape.kept_parameters(aim.first) * saved
    result = shape.kept_parameters(aim.last) * saved
    finishing = result * (2 if stored_here else 1)
    if spec.recovery.method != "none":
        finishing += result + _training_state(shape, spec.recovery, aim.last)
    return int(source + max(compressing, finishing))


def memory_bytes(shape: Shape, spec: JobSpec, *, gpu: bool) -> dict[str, int]:
    """What the job's process needs to hold at once, by stage.

    Args:
        gpu: whether there may be one. The work is then done in its memory, which is not estimated.
    """
    aim = aim_of(spec, shape.layers)
    loading = 2 * _FLOAT32 * shape.parameters if shape.gguf else 0  # as read, and the plain model
    if gpu:
        stages = {"loading": max(loading, _weights(shape, shape.parameters))}
    else:
        stages = {
            "loading": loading,
            "compressing": _compressing(shape, spec.method, spec.calibration),
            "recovering": _recovering(shape, spec, aim.last),
            "evaluating": _evaluating(shape, spec, aim.last),
        }
    return {stage: PYTHON_BYTES + held for stage, held in stages.items()}


def _weights(shape: Shape, parameters: int, stored_bytes: float | None = None) -> int:
    """A whole model in float32, but for what is stored so."""
    stored = shape.stored_bytes if stored_bytes is None else stored_bytes
    return int(_FLOAT32 * parameters * min(1.0, max(0.0, (4 - stored) / 2)))


def _compressing(shape: Shape, method: str, calibration: CalibrationSpec) -> int:
    state = _FLOAT32 * shape.hidden  # one token's
    tokens = max(FOLDS, calibration.samples) * calibration.sequence_length
    measured = (shape.layers - 1) * _subsample(calibration, MEASURED_TOKENS) * state
    match method:
        case "flattengpt" | "flattengpt-paper":
            # The dense stream before and after, the compressed one before and between, and its target there.
            return max(measured, 5 * tokens * state + _moments(shape))
        case "replaceme":
            return max(measured, 4 * tokens * state)
        case "shortgpt" | "sleb" | "come" | "fcm":
            return measured
        case "laco":
            return (shape.layers - 1) * _subsample(calibration, LACO_TOKENS) * state
        case _:
            return 0


def _moments(shape: Shape) -> int:
    """Of the MLPs of two layers, with what the choice of channels makes of them, and those layers' weights."""
    features = 2 * shape.channels
    grams = FOLDS + 5  # the sum, two matrices of its size made of it, and two more of most of that while one changes
    crosses = FOLDS + 2  # the sum, and what solves it
    moments = _FLOAT64 * (grams * features**2 + crosses * features * shape.hidden)
    return moments + 2 * _FLOAT32 * shape.layer_parameters


def _subsample(calibration: CalibrationSpec, tokens: int) -> int:
    """At least so many tokens are in a subsample of about `tokens`."""
    windows = max(1, tokens // calibration.sequence_length // FOLDS)
    return FOLDS * min(windows, max(1, calibration.samples // FOLDS)) * calibration.sequence_length


def _recovering(shape: Shape, spec: JobSpec, layers: int) -> int:
    options, length = spec.recovery, spec.calibration.sequence_length
    if options.method == "none":
        return 0
    windows = min(max(1, options.batch_tokens // length), max(1, PASS_TOKENS // length))
    tokens, width = windows * length, _SAVED_BYTES[options.precision]
    logits = tokens * shape.vocabulary * width
    kept, stored = shape.kept_parameters(layers), _SAVED_BYTES.get(spec.dtype)
    held = 2 * logits  # with their gradient
    if options.method == "distill":
        held += _weights(shape, shape.parameters) + logits
    if options.method == "distill" and options.train == "full":
        trained = layers * shape.layer_parameters
        held += 4 * _FLOAT32 * trained  # with their gradient and Adam's two moments
        held += _weights(shape, max(0, kept - trained), stored)
    else:
        held += _weights(shape, kept, stored)
    for_backward = 2 * shape.hidden + 2 * shape.attended + 3 * shape.channels
    return held + layers * tokens * for_backward * width


def _evaluating(shape: Shape, spec: JobSpec, layers: int) -> int:
    """Both models, and the logits of one batch."""
    asked, vocabulary = spec.evaluation, _FLOAT32 * shape.vocabulary
    models = _weights(shape, shape.parameters) + _weights(
        shape, shape.kept_parameters(layers), _SAVED_BYTES.get(spec.dtype)
    )
    logits = 0
    if asked.perplexity:
        windows = min(max(1, EVALUATED_TOKENS // asked.sequence_length), asked.windows or EVALUATED_TOKENS)
        copies = 3 if windows > 1 else 2  # their logarithms as probabilities, and without each window's last
        logits = copies * windows * (asked.sequence_length - 1) * vocabulary
    if asked.benchmark:
        logits = max(logits, asked.benchmark_prefill_batch_size * asked.benchmark_prefill_tokens * vocabulary)
    return models + logits


def _training_state(shape: Shape, options: RecoverySpec, layers: int) -> int:
    """The two newest states that training saves, and the trained weights."""
    states = 0 if options.epochs is None and options.steps <= 2 else 2
    if options.method == "distill" and options.train == "full":
        trained = layers * shape.layer_parameters
        return _FLOAT32 * (states * (shape.kept_parameters(layers) + 2 * trained) + shape.kept_parameters(layers))
    matrices = _lora_parameters(shape, options, layers)
    return _FLOAT32 * (states * 3 + 1) * matrices


def _lora_parameters(shape: Shape, options: RecoverySpec, layers: int) -> int:
    widths = {
        "q_proj": shape.hidden + shape.attended,
        "k_proj": shape.hidden + shape.key_values,
        "v_proj": shape.hidden + shape.key_values,
        "o_proj": shape.hidden + shape.attended,
        "gate_proj": shape.hidden + shape.channels,
        "up_proj": shape.hidden + shape.channels,
        "down_proj": shape.hidden + shape.channels,
    }
    return layers * options.rank * sum(widths[target] for target in options.targets)
