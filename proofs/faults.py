"""The faults that proofs/mutations.py plants: each a text that stands once in its file, what
replaces it, and the tests that see it.
"""

from typing import NamedTuple


class Fault(NamedTuple):
    """A fault; `tests` are files, run in this order up to the first failure."""

    name: str
    file: str
    text: str
    replacement: str
    tests: tuple[str, ...]


PIPELINE, PREPROCESSING, SOURCES = (
    f"googlenet_jax/data/{name}.py" for name in ("pipeline", "preprocessing", "sources")
)
EVALUATE, PREDICT, PICTURES = (
    f"googlenet_jax/evaluation/{name}.py" for name in ("evaluate", "predict", "pictures")
)
CROPS, T_CROPS = "googlenet_jax/evaluation/crops.py", ("tests/evaluation/test_crops.py",)
ENSEMBLE, T_ENSEMBLE = (
    "googlenet_jax/evaluation/ensemble.py",
    ("tests/evaluation/test_ensemble.py",),
)
LAYERS, OPS, NETWORK, GOOGLENET = (
    f"googlenet_jax/models/{name}.py" for name in ("layers", "ops", "network", "googlenet")
)
AUGMENT, FILES = "googlenet_jax/data/augment.py", "googlenet_jax/runtime/storage.py"
DECODING, FOLDER, PHOTOMETRIC = (
    f"googlenet_jax/data/{name}.py" for name in ("decoding", "folder", "photometric")
)
T_DECODING, T_FOLDER, T_PHOTOMETRIC, T_WORKERS = (
    ("tests/data/test_" + name + ".py",)
    for name in ("decoding", "folder", "photometric", "workers")
)
T_FIELDS = ("tests/training/test_input_fields.py",)
SAFETENSORS, TORCH = "googlenet_jax/weights/safetensors.py", "googlenet_jax/weights/pytorch.py"
TREE = "googlenet_jax/weights/tree.py"
T_PIPELINE, T_PREPROCESSING, T_SOURCES = (
    ("tests/data/test_" + name + ".py",) for name in ("pipeline", "preprocessing", "sources")
)
T_EVALUATE, T_PREDICT, T_PICTURES = (
    ("tests/evaluation/test_" + name + ".py",) for name in ("evaluate", "predict", "pictures")
)
LOSSES, OPTIMIZER, STEP, LOOP = (
    f"googlenet_jax/training/{n}.py" for n in ("losses", "optimizer", "step", "loop")
)
CHECKPOINT = "googlenet_jax/weights/checkpoints.py"
PICTURE_FILES = "googlenet_jax/data/picture_files.py"
METRICS, MESH = "googlenet_jax/evaluation/metrics.py", "googlenet_jax/runtime/sharding.py"
T_LOSSES, T_OPTIMIZER, T_STEP, T_LOOP = (
    ("tests/training/test_" + n + ".py",) for n in ("losses", "optimizer", "step", "loop")
)
T_METRICS = ("tests/evaluation/test_metrics.py", "tests/evaluation/test_evaluate.py")
T_AUGMENT = ("tests/data/test_augment.py",)
T_SAFETENSORS, T_TORCH = ("tests/weights/test_safetensors.py",), ("tests/weights/test_torch.py",)
T_LAYERS, T_NETWORKS = (("tests/models/test_" + name + ".py",) for name in ("layers", "networks"))
T_PRECISION = ("tests/parity/test_precision.py",)
VERIFICATION = "googlenet_jax/verification"
T_VERIFY = ("tests/verification/test_verify.py",)

FAULTS = (
    # Data order and sharding among processes.
    Fault(
        "examples are never shuffled",
        PIPELINE,
        ".seed(crops.seed).shuffle().repeat()",
        ".seed(crops.seed).repeat()",
        T_PIPELINE,
    ),
    Fault(
        "the seed is ignored",
        PIPELINE,
        ".seed(crops.seed).shuffle()",
        ".seed(0).shuffle()",
        T_PIPELINE,
    ),
    Fault(
        "a resumed run begins with batch 0",
        PIPELINE,
        '{"next_index": start}',
        '{"next_index": 0}',
        T_PIPELINE,
    ),
    Fault(
        "every process reads the first one's rows",
        PIPELINE,
        "slice(process_index * rows, (process_index + 1) * rows)",
        "slice(0, rows)",
        T_PIPELINE,
    ),
    Fault(
        "crops depend on how many processes share the batch",
        PIPELINE,
        "rng.random((crops.batch_size, CROP_TRIES + 1, 2))[crops.rows]",
        "rng.random((crops.rows.stop - crops.rows.start, CROP_TRIES + 1, 2))",
        T_PIPELINE,
    ),
    # Crops.
    Fault(
        "aspect ratios are uniform, not log-uniform",
        PIPELINE,
        "narrowest * (widest / narrowest) ** aspect_draw",
        "narrowest + (widest - narrowest) * aspect_draw",
        T_PIPELINE,
    ),
    Fault(
        "the largest area of a crop is ignored",
        PIPELINE,
        "(largest - smallest) * area_draw",
        "(1 - smallest) * area_draw",
        T_PIPELINE,
    ),
    Fault(
        "a crop's height and width are swapped",
        PIPELINE,
        "round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))",
        "round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))",
        T_PIPELINE,
    ),
    Fault(
        "the last row is never cropped",
        PIPELINE,
        "int(top * (height - crop_height + 1))",
        "int(top * (height - crop_height))",
        T_PIPELINE,
    ),
    Fault(
        "the fallback crop is not central",
        PIPELINE,
        "return (height - crop_height) // 2, (width - crop_width) // 2,",
        "return 0, (width - crop_width) // 2,",
        T_PIPELINE,
    ),
    Fault(
        "the centre crop is rounded down",
        PIPELINE,
        "round((side - size) / 2)",
        "((side - size) // 2)",
        T_PIPELINE,
    ),
    Fault(
        "shrinking does not average",
        "googlenet_jax/data/resampling.py",
        '"area" if height <= image.shape[0]',
        '"bilinear" if height <= image.shape[0]',
        T_PIPELINE,
    ),
    # Evaluation counts.
    Fault(
        "the last batch of an evaluation is lost",
        PIPELINE,
        "math.ceil(len(reader.source) / batch_size)",
        "len(reader.source) // batch_size",
        T_PIPELINE,
    ),
    Fault(
        "padding has the index of an example",
        PIPELINE,
        '-1 if key == "index" else 0',
        "0",
        T_PIPELINE,
    ),
    Fault(
        "the last sums are not added",
        EVALUATE,
        "    _add(totals, outputs, waiting)\n    examples",
        "    examples",
        T_EVALUATE,
    ),
    Fault(
        "an evaluation's batch is not padded to the devices",
        EVALUATE,
        "padded = -(-min(batch_size, len(source)) // devices) * devices",
        "padded = min(batch_size, len(source))",
        T_EVALUATE,
    ),
    Fault(
        "sums are taken as means of the batches",
        EVALUATE,
        "totals.get(name, 0) + value.item()",
        "value.item()",
        T_EVALUATE,
    ),
    # Preprocessing and decoding.
    Fault(
        "channels are reversed for the wrong order",
        PREPROCESSING,
        'channel_order == "bgr"',
        'channel_order == "rgb"',
        T_PREPROCESSING,
    ),
    Fault(
        "bfloat16 is normalised in bfloat16",
        PREPROCESSING,
        "jnp.promote_types(dtype, jnp.float32)",
        "jnp.dtype(dtype)",
        T_PREPROCESSING,
    ),
    Fault(
        "images are flipped upside down",
        AUGMENT,
        "images[:, :, ::-1, :]",
        "images[:, ::-1, :, :]",
        T_AUGMENT,
    ),
    Fault(
        "too few images are flipped",
        AUGMENT,
        "bernoulli(key, 0.5,",
        "bernoulli(key, 0.3,",
        T_AUGMENT,
    ),
    Fault(
        "images are decoded as BGR", DECODING, "cv2.IMREAD_COLOR_RGB", "cv2.IMREAD_COLOR", T_SOURCES
    ),
    Fault(
        "images are turned as EXIF says",
        DECODING,
        "cv2.IMREAD_IGNORE_ORIENTATION | (",
        "(",
        T_SOURCES,
    ),
    Fault(
        "a label beyond the classes passes",
        SOURCES,
        "0 <= label < self.num_classes",
        "0 <= label <= self.num_classes",
        T_SOURCES,
    ),
    # Fast decoding, bad images, folders, distortions.
    Fault(
        "a smaller decode's crop lies elsewhere",
        DECODING,
        "math.floor(edge + 0.5)",
        "math.ceil(edge + 1)",
        T_DECODING,
    ),
    Fault(
        "a plain interpolation is of a smaller decode",
        DECODING,
        '("auto", "area", ANTIALIASED)',
        "INTERPOLATIONS",
        T_DECODING,
    ),
    Fault(
        "a huge picture is decoded",
        DECODING,
        "if height * width > MAX_PIXELS:",
        "if height * width > 10**12:",
        T_DECODING,
    ),
    Fault(
        "the drawn interpolation is always the first",
        PIPELINE,
        "PAPER_INTERPOLATIONS[draw]",
        "PAPER_INTERPOLATIONS[0]",
        T_WORKERS,
    ),
    Fault(
        "a bad image keeps its weight", PIPELINE, "weights[row] = 0", "weights[row] = 1", T_WORKERS
    ),
    Fault(
        "a weight of 0 counts in the loss",
        METRICS,
        'if "weight" not in batch:',
        "if True:",
        T_FIELDS,
    ),
    Fault("a folder's split ignores the seed", FOLDER, 'f"{seed}:', 'f"0:', T_FOLDER),
    Fault(
        "photographs of a folder lie on their side",
        DECODING,
        "_EXIF_ORIENTATION = 0x0112",
        "_EXIF_ORIENTATION = 0x0113",
        T_FOLDER,
    ),
    Fault("hue turns by half", PHOTOMETRIC, "6 * shift", "3 * shift", T_PHOTOMETRIC),
    Fault(
        "the order of the distortions is fixed",
        PHOTOMETRIC,
        "order[:, place] == number",
        "place == number",
        T_PHOTOMETRIC,
    ),
    Fault(
        "contrast blends with black",
        PHOTOMETRIC,
        "_grey(images).mean(",
        "0 * _grey(images).mean(",
        T_PHOTOMETRIC,
    ),
    # Prediction.
    Fault(
        "equal probabilities stand in reverse",
        PREDICT,
        'np.argsort(-probabilities, kind="stable")',
        'np.argsort(probabilities, kind="stable")[::-1]',
        T_PREDICT,
    ),
    Fault(
        "pictures are not turned as EXIF says",
        PICTURES,
        "orientation=exif_orientation(encoded)",
        "orientation=1",
        T_PICTURES,
    ),
    Fault(
        "a TIFF is turned twice",
        DECODING,
        '_TURNED_BY_DECODER = ("TIFF",)',
        "_TURNED_BY_DECODER = ()",
        T_DECODING,
    ),
    Fault("hidden files are pictures", PICTURE_FILES, "if not hidden and", "if", T_PICTURES),
    Fault(
        "what a decoder raises escapes",
        DECODING,
        "except Exception:  # a decoder's, of a damaged file: anything\n        image",
        "except cv2.error:\n        image",
        T_DECODING,
    ),
    # Crops and ensembles.
    Fault(
        "an image's last square is its first",
        CROPS,
        "0, round(slack / 2), slack",
        "0, round(slack / 2), 0",
        T_CROPS,
    ),
    Fault(
        "no crop is mirrored",
        CROPS,
        "mirrored=True",
        "mirrored=False",
        T_CROPS,
    ),
    Fault(
        "an ensemble's images without a picture lose their place",
        ENSEMBLE,
        """                shape = (0, len(self.members), len(self.crops), len(self.class_names))
                yield about""",
        """                continue
                shape = (0, len(self.members), len(self.crops), len(self.class_names))
                yield about""",
        T_ENSEMBLE,
    ),
    # Weights.
    Fault(
        "kernels come in with height and width swapped",
        TREE,
        "(2, 3, 1, 0) if to_ours",
        "(3, 2, 1, 0) if to_ours",
        T_TORCH,
    ),
    Fault(
        "a flattened map is read channels last",
        TREE,
        "(-1, channels, side, side) if to_ours",
        "(-1, side, side, channels) if to_ours",
        T_TORCH,
    ),
    Fault(
        "the result shares the tensor's memory",
        TREE,
        'return np.array(array, order="C")',
        "return array",
        T_TORCH,
    ),
    Fault("a negative bit is not resolved", TORCH, ".resolve_neg()", "", T_TORCH),
    Fault(
        "transposed arrays are written as they lie",
        SAFETENSORS,
        'return np.asarray(array, order="C")',
        "return np.asarray(array)",
        T_SAFETENSORS,
    ),
    Fault(
        "too few class names pass",
        SAFETENSORS,
        "len(class_names) != model.num_classes",
        "len(class_names) > model.num_classes",
        T_SAFETENSORS,
    ),
    Fault(
        "a file is not flushed to the disk",
        "googlenet_jax/runtime/local_storage.py",
        "os.fsync(file.fileno())",
        "pass",
        T_SAFETENSORS,
    ),
    # Models: pools, LRN, batch norm, convolutions, the networks' own figures.
    Fault(
        "ceil pools take one window too few",
        LAYERS,
        "max(-(-(size - kernel) // stride), 0) + 1",
        "(size - kernel) // stride + 1",
        T_LAYERS,
    ),
    Fault(
        "TensorFlow's padding is put before",
        LAYERS,
        "return total // 2, total - total // 2",
        "return total - total // 2, total // 2",
        T_LAYERS,
    ),
    Fault(
        "the last of equal values gets a pool's gradient",
        OPS,
        "range(window - 2, -1, -1)",
        "range(window - 1)",
        T_LAYERS,
    ),
    Fault(
        "LRN does not divide alpha by its size",
        LAYERS,
        "(alpha / size) * total",
        "alpha * total",
        T_LAYERS,
    ),
    Fault(
        "LRN's window is off by one",
        LAYERS,
        "before = size // 2",
        "before = size // 2 - 1",
        T_LAYERS,
    ),
    Fault(
        "adaptive windows end too early",
        LAYERS,
        "-(-(i + 1) * size // out)",
        "(i + 1) * size // out",
        T_LAYERS,
    ),
    Fault("the running variance is biased", LAYERS, "(n / max(n - 1, 1))", "1.0", T_LAYERS),
    Fault(
        "running statistics follow the batch the other way round",
        LAYERS,
        "self.momentum * running.value + (1 - self.momentum) * batch",
        "(1 - self.momentum) * running.value + self.momentum * batch",
        T_LAYERS,
    ),
    Fault(
        "batch norm's gradient forgets the mean", OPS, " - wide(factor * sum_dy / n)", "", T_LAYERS
    ),
    Fault(
        "an epsilon of 0.01 for 0.001",
        NETWORK,
        "bn_epsilon: float = 1e-3",
        "bn_epsilon: float = 1e-2",
        T_PRECISION,
    ),
    Fault(
        "frozen statistics are those of training",
        NETWORK,
        "not train if use_running_average is None",
        "False if use_running_average is None",
        T_PRECISION,
    ),
    Fault(
        "a module's width is another",
        GOOGLENET,
        "192,   96, 208,   16,  48,  64)",
        "192,   96, 204,   16,  48,  64)",
        T_NETWORKS,
    ),
    # Losses and metrics.
    Fault(
        "auxiliary losses have no weight",
        LOSSES,
        "total += aux_weight * parts",
        "total += parts",
        T_LOSSES,
    ),
    Fault(
        "an auxiliary loss is subtracted",
        LOSSES,
        "total += aux_weight",
        "total -= aux_weight",
        T_LOSSES,
    ),
    Fault(
        "labels are never smoothed",
        METRICS,
        "labels.astype(logits.dtype), label_smoothing)",
        "labels.astype(logits.dtype), 0.0)",
        T_LOSSES,
    ),
    Fault(
        "the loss is summed in the logits' dtype",
        METRICS,
        "jnp.promote_types(logits.dtype, jnp.float32)",
        "logits.dtype",
        T_LOSSES,
    ),
    Fault(
        "a constant prediction is always a hit",
        METRICS,
        "(classes >= labels[:, None])",
        "(classes >= 0)",
        T_METRICS,
    ),
    Fault(
        "padding is counted",
        EVALUATE,
        'is_example = batch["weight"] > 0',
        'is_example = batch["weight"] >= 0',
        T_STEP + T_EVALUATE,
    ),
    # Optimizer, its masks and schedules.
    Fault(
        "biases decay",
        OPTIMIZER,
        'path[-1] in ("kernel", "depthwise_kernel")',
        'path[-1] in ("kernel", "bias")',
        T_OPTIMIZER,
    ),
    Fault(
        "batch norm's biases have the multiplied rate",
        OPTIMIZER,
        'path[-1] == "bias" and path[-2:-1] != ("bn",)',
        'path[-1] == "bias"',
        T_OPTIMIZER,
    ),
    Fault(
        "Nesterov's momentum is ignored",
        OPTIMIZER,
        "optax.trace(momentum, nesterov=nesterov)",
        "optax.trace(momentum)",
        T_OPTIMIZER,
    ),
    Fault(
        "the stepped rate falls a step late",
        OPTIMIZER,
        "factor ** (step // every)",
        "factor ** ((step - 1) // every)",
        T_OPTIMIZER,
    ),
    Fault(
        "the warm-up begins at zero",
        OPTIMIZER,
        "optax.linear_schedule(learning_rate / (warmup + 1)",
        "optax.linear_schedule(0.0",
        T_OPTIMIZER,
    ),
    Fault(
        "the schedule ends after the run",
        OPTIMIZER,
        "steps = total_steps - warmup",
        "steps = total_steps",
        T_OPTIMIZER,
    ),
    # Step, averaging, sharding.
    Fault(
        "every step draws the same dropout",
        STEP,
        "jax.random.fold_in(key, state.step)",
        "key",
        T_STEP,
    ),
    Fault(
        "the average follows the old parameters",
        STEP,
        """optax.incremental_update(
                new, ema,""",
        """optax.incremental_update(
                old, ema,""",
        T_STEP,
    ),
    Fault(
        "the average's decay is turned round",
        STEP,
        "new, ema, 1.0 - average_decay",
        "new, ema, average_decay",
        T_STEP,
    ),
    Fault("the average starts at once", STEP, "step < start, 0.0", "step < 0, 0.0", T_STEP),
    Fault(
        "batch statistics are not kept",
        STEP,
        'updated.get("batch_stats", {}))',
        "state.batch_stats)",
        T_STEP,
    ),
    Fault(
        "only the first device is used",
        MESH,
        "devices = jax.devices() if devices is None",
        "devices = jax.devices()[:1] if devices is None",
        T_STEP,
    ),
    Fault(
        "every device has the whole batch",
        MESH,
        "sharding = data_sharding(mesh)",
        "sharding = replicated(mesh)",
        T_STEP,
    ),
    # The loop's order.
    Fault(
        "a resumed run takes the batches from the start",
        LOOP,
        "task.batches(start)",
        "task.batches(0)",
        T_LOOP,
    ),
    Fault(
        "lines after the checkpoint stay",
        LOOP,
        "cut_back(workdir / METRICS_FILE, start,",
        "cut_back(workdir / METRICS_FILE, 10**9,",
        T_LOOP,
    ),
    Fault(
        "a resumed run saves and evaluates again",
        LOOP,
        "undone = step > start or cut_short",
        "undone = step > 0",
        T_LOOP,
    ),
    Fault(
        "the average is never evaluated",
        LOOP,
        'if state.ema is None else ("raw", "ema")',
        'if state.ema is None else ("raw",)',
        T_LOOP,
    ),
    # A network beside another framework's.
    Fault(
        "any difference in training is rounding",
        f"{VERIFICATION}/training.py",
        "bound = MARGIN**3 * max(wander if math.isfinite(wander) else 0.0, forward)",
        "bound = MARGIN**3",
        T_VERIFY,
    ),
)
