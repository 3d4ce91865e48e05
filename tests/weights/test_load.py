"""One door: what holds a trained model is opened by `gj.load`, with all that belongs to it."""

import http.server
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

import googlenet_jax as gj
from googlenet_jax.cli.main import main
from googlenet_jax.data.imagenet import class_names, imagenet_classes
from googlenet_jax.data.preprocessing import Preprocessing
from googlenet_jax.errors import UserError
from googlenet_jax.evaluation.ensemble import matched_classes
from googlenet_jax.verification.reference import InceptionV3
from googlenet_jax.weights import pretrained
from googlenet_jax.weights.convert import read_weights
from googlenet_jax.weights.heads import settled_classifier
from googlenet_jax.weights.trained_model import TrainedModel
from tests.weights.caffe_file import caffemodel
from tests.weights.test_convert import assert_same, caffe_layers, state_dict

pytestmark = pytest.mark.usefixtures("in_process")
NARROW = {"width": 0.125, "aux_heads": False}
NAMES = ("tench", "goldfish", "shark", "ray", "cock")


def tensors(name: str, **options: Any) -> dict[str, torch.Tensor]:
    return state_dict(name, aux_heads=False, **options)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "china.png"
    Image.fromarray(load_sample_image("china.jpg")[::4, ::4]).save(path)
    return path


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """A file of this project, of five named classes, on small images."""
    model = gj.create_model("googlenet_torchvision", num_classes=5, **NARROW)
    variables = gj.weights.from_torch(model, tensors("googlenet_torchvision"))
    path = tmp_path / "ours.safetensors"
    preprocessing = Preprocessing(size=32, resize=36).to_dict()
    gj.save_weights(path, model, variables, preprocessing, NAMES)
    return path


# ------------------------------------------------------------------------------------ what is found


@pytest.mark.parametrize(
    ("reference", "name", "options"),
    [
        ("googlenet_torchvision", "googlenet_torchvision", {}),
        ("googlenet_bn", "googlenet_bn", {}),
        ("googlenet_slim", "googlenet_slim", {}),
    ],
)
def test_a_state_dict_names_its_network(
    reference: str, name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    given = state_dict(reference)
    torch.save(given, tmp_path / "x.pth")
    loaded = gj.load(tmp_path / "x.pth")
    assert type(loaded.model) is type(gj.create_model(name))
    assert (loaded.model.width, loaded.model.num_classes) == (0.125, 5)
    assert loaded.model.aux_heads == any(key.startswith("aux") for key in given)
    assert_same(loaded.variables, gj.weights.from_torch(loaded.model, given))


def test_folded_batch_norms_look_like_a_network_without_any(tmp_path: Path) -> None:
    """The names of a folded googlenet_bn are googlenet's, and LRN tells them apart alone."""
    given = tensors("googlenet")
    torch.save(given, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"fit googlenet and googlenet_bn; say which with model="):
        gj.load(tmp_path / "x.pth")
    assert gj.load(tmp_path / "x.pth", "googlenet").model == gj.create_model(
        "googlenet", num_classes=5, **NARROW
    )


def test_a_file_of_no_network_is_refused(tmp_path: Path) -> None:
    torch.save({"layer.weight": torch.zeros(3, 3)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"fit no network of bn_inception.*layer\.weight"):
        gj.load(tmp_path / "x.pth")


def test_caffes_file_names_its_network(tmp_path: Path) -> None:
    layers = caffe_layers(tensors("googlenet"))
    (tmp_path / "x.caffemodel").write_bytes(caffemodel(layers, old=False))
    loaded = gj.load(tmp_path / "x.caffemodel", width=0.125)
    assert loaded.model == gj.create_model("googlenet", num_classes=5, **NARROW)
    assert loaded.preprocessing is not None and loaded.preprocessing.channel_order == "bgr"


# ------------------------------------------------------------------------------------ preprocessing


def v3(scales: bool = True, classes: int = 5) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    given = InceptionV3(num_classes=classes, width=0.125, aux_heads=False).state_dict()
    return {k: v for k, v in given.items() if scales or not k.endswith("bn.weight")}


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("v3.pth", lambda: v3(), ("torchvision", True, 123.675, 299)),
        ("v3.pth", lambda: v3(False), ("keras", False, 127.5, 299)),
        ("tf_inception_v3-e0069de4.pth", lambda: v3(), ("torchvision", False, 127.5, 299)),
        ("gluon_inception_v3-9f746940.pth", lambda: v3(), ("torchvision", False, 123.675, 299)),
        ("fid.pth", lambda: v3(classes=1008), ("fid", False, 127.5, 299)),
    ],
)
def test_preprocessing_is_what_the_public_weights_want(
    name: str, given: Callable[[], Any], expected: tuple[Any, ...], tmp_path: Path
) -> None:
    torch.save(given(), tmp_path / name)
    loaded = gj.load(tmp_path / name)
    model: Any = loaded.model
    preprocessing = loaded.preprocessing
    assert preprocessing is not None
    found = (model.flavour, model.transform_input, preprocessing.mean[0], preprocessing.size)
    assert found == expected
    assert any(note.startswith("preprocessing: ") for note in loaded.notes)


def test_convert_tells_the_preprocessing_and_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(tensors("googlenet_torchvision"), tmp_path / "x.pth")
    assert main(["convert", str(tmp_path / "x.pth"), str(tmp_path / "x.safetensors")]) == 0
    told = capsys.readouterr().out
    assert "transform_input=True" in told and "224 pixels" in told
    assert gj.load(tmp_path / "x.safetensors").model.transform_input


# ----------------------------------------------------------------------------------------- heads


@pytest.mark.parametrize(
    ("change", "classes", "initialised"),
    [
        (lambda fc: {}, 1000, ("head",)),
        (lambda fc: {f"fc.1.{k}": v for k, v in fc.items()}, 5, ()),
        (lambda fc: {f"last_linear.{k}": v for k, v in fc.items()}, 5, ()),
        (
            lambda fc: {f"fc.{i}.{k}": v for i in (0, 2) for k, v in fc.items()},
            1000,
            ("head",),
        ),
    ],
    ids=["none", "in a Sequential", "pretrainedmodels", "two layers"],
)
def test_a_classifier_of_another_form(
    change: Any, classes: int, initialised: tuple[str, ...], tmp_path: Path, picture: Path
) -> None:
    given = tensors("googlenet_torchvision")
    fc = {name: given.pop(f"fc.{name}") for name in ("weight", "bias")}
    torch.save(given | change(fc), tmp_path / "x.pth")
    loaded = gj.load(tmp_path / "x.pth")
    assert (loaded.model.num_classes, loaded.initialised) == (classes, initialised)
    if initialised:
        assert any("initialised" in note for note in loaded.notes)
        with pytest.raises(UserError, match="has no classifier"):
            loaded.predict(picture)
        loaded.save(tmp_path / "x.safetensors")
        assert gj.load(tmp_path / "x.safetensors").initialised == initialised
    else:
        assert np.array_equal(loaded.variables["params"]["head"]["kernel"], fc["weight"].numpy().T)


def test_auxiliary_heads_of_other_classes_are_left_out(tmp_path: Path) -> None:
    given = state_dict("googlenet_torchvision")
    given["fc.weight"], given["fc.bias"] = torch.rand(3, 128), torch.rand(3)
    torch.save(given, tmp_path / "x.pth")
    loaded = gj.load(tmp_path / "x.pth")
    assert (loaded.model.num_classes, loaded.model.aux_heads) == (3, False)
    assert any("auxiliary heads were left out" in note for note in loaded.notes)


def test_a_misshapen_classifier_is_not_taken() -> None:
    found = settled_classifier(
        "fc.weight", "fc.bias", 8, {"fc.1.weight": np.zeros((5, 9)), "fc.1.bias": np.zeros(5)}
    )
    assert found.num_classes is None and not found.tensors


# -------------------------------------------------------------------------------------- flavours


def test_scales_of_one_meet_a_flavour_without_any(tmp_path: Path) -> None:
    given = v3()
    for name in given:
        if name.endswith("bn.weight"):
            given[name] = torch.ones_like(given[name])
    given["Conv2d_1a_3x3.bn.weight"] *= -0.5  # a power of two multiplies exactly
    torch.save(given, tmp_path / "x.pth")
    loaded = gj.load(tmp_path / "x.pth", flavour="slim")
    kernel = given["Conv2d_1a_3x3.conv.weight"].numpy().transpose(2, 3, 1, 0)
    assert np.array_equal(loaded.variables["params"]["conv1a"]["kernel"], kernel * -0.5)
    given["Conv2d_2a_3x3.bn.weight"] *= 1.5
    torch.save(given, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"Conv2d_2a_3x3\.bn\.weight.*flavour .*torchvision"):
        gj.load(tmp_path / "x.pth", flavour="slim")


def test_a_flavour_without_scales_becomes_a_strict_state_dict(tmp_path: Path) -> None:
    torch.save(v3(scales=False), tmp_path / "x.pth")
    gj.load(tmp_path / "x.pth").save(tmp_path / "out.pth")
    network = InceptionV3(num_classes=5, width=0.125, aux_heads=False)
    out = torch.load(tmp_path / "out.pth", weights_only=True)
    network.load_state_dict(out, strict=True)
    assert torch.equal(out["Conv2d_1a_3x3.bn.weight"], torch.ones(4))


# ----------------------------------------------------------------------------------- using them


def test_from_a_weight_file_to_named_predictions_in_eight_lines(
    ours: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lines of the README."""
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    assert 'gj.load("googlenet_torchvision")' in code and len(code.splitlines()) <= 8
    code = code.replace('"googlenet_torchvision"', repr(str(ours)))
    code = code.replace('"photo.jpg"', repr(str(picture)))
    exec(compile(code, "README.md", "exec"), {})
    assert any(name in capsys.readouterr().out for name in NAMES)


def test_a_trained_model_predicts_what_it_is_given(ours: Path, picture: Path) -> None:
    trained = gj.load(ours)
    array = np.asarray(Image.open(picture))
    (expected,) = trained.predict(picture, top=2)
    assert [each[0] in NAMES for each in expected] == [True, True]
    for images in (str(picture), Image.open(picture), array, [array], array[None]):
        assert trained.predict(images, top=2) == [expected]
    logits = trained.logits([array, array])
    assert logits.shape == (2, 5)
    shares = np.exp(logits[0] - logits[0].max())
    assert expected[0].probability == pytest.approx(shares.max() / shares.sum(), rel=1e-5)
    assert NAMES[int(logits[0].argmax())] == expected[0].class_name
    (ten,) = trained.predict(array, top=1, crops=10)
    assert ten[0].class_name in NAMES
    assert trained.features(array).shape == (1, 128)
    assert trained.features(array, names=("inception_3a",))["inception_3a"].ndim == 4


def test_wrong_images_are_named(ours: Path, tmp_path: Path) -> None:
    trained = gj.load(ours)
    with pytest.raises(UserError, match="uint8"):
        trained.predict(np.zeros((8, 8, 3), np.float32))
    with pytest.raises(UserError, match=r"missing\.jpg"):
        trained.predict("missing.jpg")
    with pytest.raises(UserError, match="expected at least one"):
        trained.logits([])
    with pytest.raises(UserError, match="no endpoint 'pool9'"):
        trained.features(np.zeros((8, 8, 3), np.uint8), names=("pool9",))


def test_a_file_goes_through_the_door_and_back_unchanged(ours: Path, tmp_path: Path) -> None:
    gj.load(ours).save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == ours.read_bytes()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("googlenet_torchvison", "did you mean 'googlenet_torchvision'"),
        ("nothing.pth", "is no file, no run's folder and no public weights"),
        ("raw", "DIR@raw"),
        ("x\0y", "is no file"),
    ],
)
def test_what_is_not_there_is_said(name: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        gj.load(name)


# ------------------------------------------------------------------- each command, each kind


def _pytorch(folder: Path) -> str:
    torch.save(tensors("googlenet_torchvision"), folder / "w.pth")
    return str(folder / "w.pth")


def _torch_safetensors(folder: Path) -> str:
    safetensors.torch.save_file(tensors("googlenet_torchvision"), folder / "w.safetensors")
    return str(folder / "w.safetensors")


def _ours(folder: Path) -> str:
    read_weights(_pytorch(folder)).save(folder / "o.safetensors")
    return str(folder / "o.safetensors")


def _hub(folder: Path) -> str:
    (folder / "hub").mkdir()
    safetensors.torch.save_file(
        tensors("googlenet_torchvision"), folder / "hub" / "model.safetensors"
    )
    return str(folder / "hub")


KINDS = {"ours": _ours, "pytorch": _pytorch, "safetensors": _torch_safetensors, "hub": _hub}
COMMANDS: dict[str, list[str]] = {
    "predict": ["predict", "--weights", "{}", "{picture}", "--json"],
    "convert": ["convert", "{}", "{out}.pth"],
    "evaluate": ["evaluate", "--weights", "{}", "--data=digits", "--data-dir={out}", "--json"],
    "export": ["export", "googlenet_torchvision", "--weights", "{}", "--output={out}.stablehlo"],
}


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        # An export takes ten seconds, and is of the network, however that was loaded.
        pytest.param(
            command, kind, marks=[pytest.mark.proof] * (command == "export" and kind != "ours")
        )
        for command in COMMANDS
        for kind in KINDS
    ],
)
def test_each_command_takes_each_kind(
    command: str, kind: str, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs are taken in tests/cli, public names in test_pretrained.py."""
    weights = KINDS[kind](tmp_path)
    out = str(tmp_path / "out")
    arguments = [each.format(weights, picture=picture, out=out) for each in COMMANDS[command]]
    status = main(arguments)
    told = capsys.readouterr()
    if command == "evaluate":  # five classes, and the digits have ten
        assert status == 1 and "expected a model of 10 classes" in told.err
    else:
        assert status == 0, told.err
    if command == "predict":
        assert len(json.loads(told.out)["predictions"]) == 5


# ------------------------------------------------------------------------- the hub's layout


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server on loopback that answers as the hub does, with one repository."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    safetensors.torch.save_file(v3(), tmp_path / "model.safetensors")
    config = {
        "architecture": "inception_v3",
        "pretrained_cfg": {
            "input_size": [3, 96, 96],
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "crop_pct": 0.75,
            "interpolation": "bicubic",
            "label_names": list(NAMES),
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(False)

        def do_GET(self) -> None:
            self.answer(True)

        def answer(self, body: bool) -> None:
            path = tmp_path / self.path.split("?")[0].rsplit("/", 1)[1]
            if not self.path.startswith("/owner/name/resolve/") or not path.is_file():
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            content = path.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{path.stem}-{len(content)}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        original = huggingface_hub.hf_hub_download

        def download(repository: str, file: str, **options: Any) -> str:
            return original(
                repository, file, endpoint=endpoint, cache_dir=tmp_path / "cache", **options
            )

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        yield endpoint
        server.shutdown()


def test_a_repository_of_the_hub_brings_its_preprocessing(hub: str) -> None:
    loaded = gj.load("hf-hub:owner/name")
    assert loaded.preprocessing == Preprocessing(
        size=96, resize=128, mean=(127.5,) * 3, std=(127.5,) * 3, interpolation="bicubic"
    )
    assert (loaded.class_names, loaded.source) == (NAMES, "hf-hub:owner/name")
    assert not loaded.model.transform_input
    for wrong, says in (("hf-hub:name", "OWNER/NAME"), ("hf-hub:owner/other", "safetensors")):
        with pytest.raises(UserError, match=says):
            gj.load(wrong)


# -------------------------------------------------------------------------- some of the classes


def test_classes_are_matched_by_name_or_wordnet_id() -> None:
    ids = [imagenet_classes()[place].wordnet_id for place in (7, 1)]
    assert matched_classes(class_names(), ids) == (7, 1)
    assert matched_classes(class_names(), ["goldfish", "Great_White  Shark"]) == (1, 2)
    assert matched_classes(("crane", "crane", "b"), ["b", "crane"]) is None  # which?
    assert matched_classes(class_names(), ["goldfish", "unicorn"]) is None
    assert matched_classes(("a", "b"), ["b", "B"]) is None
    assert matched_classes(None, ["a"]) is None


def test_public_weights_are_described_without_a_download() -> None:
    for name in pretrained.list_pretrained():
        about = pretrained.describe(name)
        assert about is not None and about.preprocessing.size in (224, 299)
    assert pretrained.describe("nothing") is None


def test_a_network_of_more_classes_is_evaluated_on_a_folder_of_some(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A network of the 1,000 classes, a folder of two of them by WordNet id, in another order."""
    rng = np.random.default_rng(0)
    for place in (7, 1):
        folder = tmp_path / "photos" / imagenet_classes()[place].wordnet_id
        folder.mkdir(parents=True)
        for number in range(3):
            picture = rng.integers(0, 256, (20, 20, 3), np.uint8)
            Image.fromarray(picture).save(folder / f"{number}.png")
    given = tensors("googlenet_torchvision")
    given["fc.weight"], given["fc.bias"] = torch.zeros(1000, 128), torch.zeros(1000)
    given["fc.bias"][7] = 50  # everything is the class 7
    model = gj.create_model("googlenet_torchvision", num_classes=1000, **NARROW)
    variables = gj.weights.from_torch(model, given)
    path, data = tmp_path / "w.safetensors", tmp_path / "data"
    gj.save_weights(path, model, variables, {"size": 32, "resize": 32}, class_names())
    prepare = ["prepare", "folder", str(tmp_path / "photos"), "--data-dir", str(data)]
    assert main(prepare) == 0
    name, split = "photos", "train+validation"
    capsys.readouterr()
    arguments = [f"--weights={path}", f"--data={name}", f"--split={split}", f"--data-dir={data}"]
    assert main(["evaluate", *arguments, "--json"]) == 0
    told = capsys.readouterr()
    results = json.loads(told.out)
    assert results["top1"] == 0.5 and "2 of its 1,000 classes" in told.err
    shown = {each["class"]: each["recall"] for each in results["classes"]}
    assert shown == {class_names()[7]: 1.0, class_names()[1]: 0.0}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_our_own_file_with_a_value_that_is_not_finite_is_refused(tmp_path: Path, value) -> None:
    model = gj.create_model("googlenet_plain", num_classes=3, width=0.02)
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
    )
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)
    variables["params"]["head"]["bias"][1] = value
    gj.save_weights(tmp_path / "a.safetensors", model, variables)
    with pytest.raises(UserError, match="head/bias holds 1 values that are not finite"):
        gj.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize("offset", [3, 4])
def test_a_class_offset_at_or_past_the_classes_is_refused(tmp_path: Path, offset: int) -> None:
    model = gj.create_model("googlenet_plain", num_classes=3, width=0.02)
    with pytest.raises(UserError, match="class_offset: expected less than its 3 logits, found"):
        TrainedModel(model, {}, Preprocessing(class_offset=offset))


def test_a_pipe_is_no_weight_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe: is no regular file"):
        gj.load(tmp_path / "pipe")


@pytest.mark.parametrize("channels", [1, 4])
def test_the_first_kernel_is_fitted_to_other_images(channels: int, tmp_path: Path) -> None:
    given = tensors("googlenet_torchvision")
    torch.save(given, tmp_path / "x.pth")
    loaded = gj.load(tmp_path / "x.pth", in_channels=channels)
    kernel = loaded.variables["params"]["conv1"]["kernel"]
    theirs = given["conv1.conv.weight"].numpy().transpose(2, 3, 1, 0)
    assert kernel.shape[2] == channels
    np.testing.assert_allclose(
        kernel.sum(2) if channels == 1 else kernel[:, :, 0],
        theirs.sum(2) if channels == 1 else theirs[:, :, 0] * 0.75,
        rtol=1e-5,
    )
    assert any("in_channels" in note for note in loaded.notes)
