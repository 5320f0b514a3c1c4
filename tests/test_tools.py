"""The offline tools: they need the `train` extra (`make test` sets up an environment for them).

Trainers run for one small epoch on the research data where it lies beside the checkout.
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared" / "data"
sys.path.insert(0, str(ROOT / "tools"))

os.environ.setdefault("KERAS_BACKEND", "tensorflow")  # as the tools' own processes begin, whatever else is installed
pytest.importorskip("keras", reason="the tools need the train extra: pip install '.[train]'")
pytest.importorskip("tensorflow", reason="the tools need the train extra: pip install '.[train]'")
pytest.importorskip("tf_keras", reason="Keras 2 comes with the train extra: pip install '.[train]'")
IN_A_THREAD = "--workers", 1
"""For a trainer in this process, where Keras has computed already: beside its threads, a fork can hang."""
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the research data isn't beside this checkout")

from edgefer.errors import InputError  # noqa: E402
from edgefer.messages import Box, Detection  # noqa: E402
from edgefer.vision.card import Crop, ModelCard, ModelInput, read_card  # noqa: E402
from edgefer.vision.decoders import decode_yunet, grid_cells  # noqa: E402
from edgefer.vision.detector import MAX_IOU, Detector, suppress  # noqa: E402
from edgefer.vision.embedder import units  # noqa: E402
from edgefer.vision.emotion import EmotionReader  # noqa: E402
from edgefer.vision.model import Model, find_card, find_model  # noqa: E402
from edgefer.vision.preprocess import letterbox, to_floats  # noqa: E402

# TensorFlow and Keras warn of their own affairs.
pytestmark = [pytest.mark.timeout(500), pytest.mark.filterwarnings("default")]

CARD = {
    "schema": "edgefer.model/1",
    "name": "tiny",
    "task": "emotion",
    "decoder": "softmax",
    "input": {"width": 24, "height": 24, "colour": "gray", "range": [-1.0, 1.0]},
    "crop": {"from": "box"},
    "labels": ["angry", "happy", "sad"],
}


def tool(name: str, *arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=450, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


MODELS = """
import os, sys; os.environ["KERAS_BACKEND"] = "tensorflow"
import keras, numpy as np, tensorflow as tf, tf_keras
folder = sys.argv[1]

def plain(k, end="softmax", activation="relu"):
    image = k.Input((24, 24, 1))
    x = k.layers.Conv2D(8, 3, strides=2, use_bias=False)(image)
    x = k.layers.Activation(activation)(k.layers.BatchNormalization()(x))
    x = k.layers.GlobalAveragePooling2D()(k.layers.Conv2D(16, 3)(x))
    return k.Model(image, k.layers.Dense(3, activation=end)(x))

def separable(k):
    "As people built them years ago: separable convolutions, residual adds, 64x64, five classes."
    image = k.Input((64, 64, 1))
    x = k.layers.Conv2D(8, 3, use_bias=False)(image)
    x = k.layers.Activation("relu")(k.layers.BatchNormalization()(x))
    short = k.layers.BatchNormalization()(k.layers.Conv2D(16, 1, strides=2, padding="same", use_bias=False)(x))
    x = k.layers.SeparableConv2D(16, 3, padding="same", use_bias=False)(x)
    x = k.layers.MaxPooling2D(3, strides=2, padding="same")(k.layers.BatchNormalization()(x))
    x = k.layers.GlobalAveragePooling2D()(k.layers.Conv2D(5, 3, padding="same")(k.layers.add([x, short])))
    return k.Model(image, k.layers.Activation("softmax")(x))

keras.utils.set_random_seed(1)
plain(keras).save(f"{folder}/tiny.keras")
plain(keras, end=None).export(f"{folder}/saved", verbose=False)
plain(keras, activation=lambda x: tf.math.erfinv(x / 9)).export(f"{folder}/strange", verbose=False)
of_two = keras.Input((24, 24, 2))
keras.Model(of_two, keras.layers.GlobalAveragePooling2D()(of_two)).export(f"{folder}/of_two", verbose=False)
for k, name in ((keras, "half.keras"), (tf_keras, "half.h5")):
    policy = k.mixed_precision.set_global_policy if k is tf_keras else k.config.set_dtype_policy
    policy("mixed_float16")  # as on a GPU
    image = k.Input((24, 24, 1))
    scaled = k.layers.Normalization(axis=None)
    half = k.Model(image, plain(k)(scaled(image)))
    scaled.adapt(np.linspace(0, 2, 1152).reshape(2, 24, 24, 1))
    half.save(f"{folder}/{name}")
    policy("float32")
    picture = np.load(f"{folder}/pictures.npy")[:1] / 255
    np.save(f"{folder}/{name}.npy", np.asarray(half(picture, training=False), np.float32)[0])
lost = plain(keras)
lost.layers[-1].bias.assign([float("nan")] * 3)
lost.save(f"{folder}/lost.keras")
image = keras.Input((24, 24, 1))
wide = keras.layers.Dense(8)(keras.layers.Flatten()(image))
keras.Model(image, keras.layers.UnitNormalization()(wide)).save(f"{folder}/unit.keras")
highest = keras.layers.GlobalMaxPooling2D()(keras.layers.Conv2D(3, 3)(image))
keras.Model(image, keras.layers.Softmax()(highest)).save(f"{folder}/highest.keras")
keras.Model(image, keras.layers.AveragePooling2D(24)(image)).save(f"{folder}/map.keras")
two = plain(keras)
keras.Model([two.input, other := keras.Input((24, 24, 1))],
            keras.layers.Add()([two.output, two(other)])).save(f"{folder}/two.keras")
code = keras.layers.Lambda(lambda x: x[:, 0, 0], name="code")
keras.Sequential([keras.Input((24, 24, 1)), code]).save(f"{folder}/lambda.keras")
within = keras.layers.TimeDistributed(keras.layers.Lambda(lambda x: x, name="code"), name="each")
keras.Sequential([keras.Input((24, 24, 1)), within]).save(f"{folder}/wrapped.keras")
class Mine(keras.layers.Layer):
    def call(self, x):
        return x[:, 0, 0]
keras.Sequential([keras.Input((24, 24, 1)), Mine(name="mine_1")]).save(f"{folder}/custom.keras")
class Own(keras.Model):
    def __init__(self, **settings):
        super().__init__(**settings)
        self.mean = keras.layers.GlobalAveragePooling2D()
    def call(self, x):
        return self.mean(x)
own = Own()
own(np.zeros((1, 24, 24, 1), np.float32))
own.save(f"{folder}/subclassed.keras")
image = keras.Input((24, 24, 1))
rows = keras.layers.LSTM(4)(keras.layers.Reshape((24, 24))(image))
keras.Model(image, keras.layers.Dense(3, activation="softmax")(rows)).save(f"{folder}/recurrent.keras")
first = keras.Input((1, 24, 24))
keras.Model(first, keras.layers.Dense(3)(keras.layers.Flatten()(first))).save(f"{folder}/channels_first.keras")
eight = tf.Module()
eight.weights = tf.Variable(np.linspace(-1, 1, 576 * 3).reshape(576, 3), dtype=tf.float32)
shape = tf.TensorSpec((8, 24, 24, 1), tf.float32)
served = tf.function(lambda x: {"scores": tf.nn.softmax(tf.reshape(x, (8, 576)) @ eight.weights)}, [shape])
tf.saved_model.save(eight, f"{folder}/batch_of_8", {"serving_default": served.get_concrete_function()})
whole = keras.Input((24, 24, 1), dtype="uint8")
keras.Model(whole, plain(keras)(keras.layers.Rescaling(1 / 255)(whole))).save(f"{folder}/whole_numbers.keras")
tf_keras.utils.set_random_seed(1)
model = separable(tf_keras)
model.compile("adam", lambda truth, guess: guess[:, 0])  # a loss that no file carries
model.save(f"{folder}/old.h5")
open(f"{folder}/cut.h5", "wb").write(open(f"{folder}/old.h5", "rb").read()[:9000])
model = plain(tf_keras)
model.save_weights(f"{folder}/apart.weights.h5")
of_nn = model.to_json().replace('"softmax"', '"softmax_v2"')  # tf.nn.softmax, as TensorFlow 2.3 told of it
open(f"{folder}/apart.json", "w").write(of_nn)
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A folder with small networks of random weights, in every form that Keras had, a card, and pictures."""
    folder = tmp_path_factory.mktemp("models")
    rng = np.random.default_rng(1)
    np.save(folder / "pictures.npy", rng.integers(0, 256, (96, 24, 24, 1), np.uint8))
    subprocess.run([sys.executable, "-c", MODELS, str(folder)], check=True, capture_output=True, timeout=300)
    (folder / "tiny.json").write_text(json.dumps(CARD))
    shutil.copytree(folder / "saved", folder / "torn")
    for values in (folder / "torn" / "variables").glob("variables.data*"):
        values.write_bytes(values.read_bytes()[:100])
    for split, count in (("train", 20), ("test", 8)):
        for label in ("angry", "happy", "neutral", "sad", "surprised"):
            (folder / "faces" / split / label).mkdir(parents=True)
            for number in range(count):
                face = cv2.resize(rng.integers(0, 256, (6, 6), np.uint8), (48, 48), interpolation=cv2.INTER_CUBIC)
                cv2.imwrite(str(folder / "faces" / split / label / f"{number}.png"), face)
    return folder


def test_quantize_writes_an_int8_model_that_agrees_and_its_card(models, tmp_path, monkeypatch):
    for seed, name in (("1", "first"), ("2", "out")):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        done = tool("quantize.py", models / "tiny.keras", "--card", models / "tiny.json",
                    "--calibrate", models / "pictures.npy", "-o", tmp_path / f"{name}.tflite")  # fmt: skip
    assert (tmp_path / "first.tflite").read_bytes() == (tmp_path / "out.tflite").read_bytes(), "the same each time"
    assert "signal to noise" in done.stdout
    assert float(done.stdout.split()[-2]) > 25
    assert "in use" in done.stdout, "the range is tried"
    card = read_card(tmp_path / "out.json")
    assert len(card.sha256) == 64
    model = Model(tmp_path / "out.tflite", "emotion")
    (probabilities,) = model(np.load(models / "pictures.npy")[0])
    assert probabilities.sum() == pytest.approx(1, abs=0.02)


def convert(*arguments: object) -> int:
    """quantize.py in this process, as TensorFlow takes seconds to start; gives its exit code."""
    import quantize

    return quantize.main([*map(str, arguments)])


def test_an_old_model_of_five_classes_and_64_pixels_runs_in_the_daemon(models, tmp_path, edgefer, capfd):
    done = convert(models / "old.h5", "--calibrate", models / "faces", "--range", -1, 1, "--float-layers", 2,
                   "--io", "uint8", "--min-agreement", 0.9, "-o", tmp_path / "old.tflite")  # fmt: skip
    told = capfd.readouterr()
    assert done == 0, told.err
    assert told.out.count("left in float") == 2
    assert "accuracy on the 40 that are labelled" in told.out
    card = read_card(tmp_path / "old.json")
    assert card.labels == ("angry", "happy", "neutral", "sad", "surprise")
    assert (card.input.width, card.input.height, card.input.range) == (64, 64, (-1.0, 1.0))
    picture = models / "faces" / "test" / "sad" / "0.png"
    model = str(tmp_path / "old.tflite")
    seen = edgefer("analyze", "--json", picture, EDGEFER_EMOTION__MODEL=model, EDGEFER_IDENTITY__ENABLED="false")
    assert seen.returncode == 0, seen.stderr
    told = tool("evaluate.py", "emotion", tmp_path / "old.tflite", "--data", models / "faces", cwd=tmp_path).stdout
    assert "40 faces, " in told
    assert "recall surprise" in told
    assert {"accuracy", "macro-F1"} < {metric.metric for metric in read_card(tmp_path / "old.json").metrics}
    reader = EmotionReader(Model(tmp_path / "old.tflite", "emotion"))
    assert reader(cv2.imread(str(picture)), Detection(Box(8, 8, 30, 30), 0.9, None)).sum() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", ["half.keras", "half.h5"])
def test_what_a_gpu_was_taught_in_half_precision_is_converted(models, tmp_path, name):
    assert convert(models / name, "--calibrate", models / "pictures.npy", "--labels", "a,b,c",
                   "--precision", "float32", "-o", tmp_path / "half.tflite") == 0  # fmt: skip
    (scores,) = Model(tmp_path / "half.tflite", "emotion")(np.load(models / "pictures.npy")[0])
    np.testing.assert_allclose(scores, np.load(models / f"{name}.npy"), atol=0.01)


def test_an_embedding_that_ends_in_unit_length_needs_no_option(models, tmp_path, capfd):
    assert convert(models / "unit.keras", "--calibrate", models / "pictures.npy", "--task", "embedding",
                   "-o", tmp_path / "unit.tflite") == 0  # fmt: skip
    assert "computed in float, between int8 layers" in capfd.readouterr().out
    (vector,) = Model(tmp_path / "unit.tflite", "embedding")(np.load(models / "pictures.npy")[0])
    assert np.linalg.norm(vector) == pytest.approx(1, abs=0.02)


def test_the_maximum_of_a_map_is_computed_in_float_between_int8_layers(models, tmp_path, capfd):
    assert convert(models / "highest.keras", "--calibrate", models / "pictures.npy", "--labels", "a,b,c",
                   "-o", tmp_path / "highest.tflite") == 0  # fmt: skip
    assert "no int8 for REDUCE_MAX: computed in float" in capfd.readouterr().out


def test_what_int8_is_chosen_by_is_what_the_daemon_computes(models, tmp_path):
    from tflite_graph import run

    assert convert(models / "tiny.keras", "--calibrate", models / "pictures.npy", "--labels", "a,b,c", "--range", -1, 1,
                   "--min-agreement", 0, "-o", tmp_path / "tiny.tflite") == 0  # fmt: skip
    model = Model(tmp_path / "tiny.tflite", "emotion")
    pictures = np.load(models / "pictures.npy")
    samples = [to_floats(picture, model.card.input) for picture in pictures]
    (given,) = run((tmp_path / "tiny.tflite").read_bytes(), samples, highest=1.0)
    np.testing.assert_allclose(given, [model(picture)[0] for picture in pictures], atol=1e-6)


def test_a_model_larger_in_float_than_the_daemon_takes_becomes_int8(models, tmp_path, monkeypatch):
    asked = [models / "tiny.keras", "--calibrate", models / "pictures.npy", "--labels", "a,b,c", "--min-agreement", 0]
    assert convert(*asked, "-o", tmp_path / "small.tflite") == 0
    monkeypatch.setattr("edgefer.vision.model.MAX_MODEL_BYTES", (tmp_path / "small.tflite").stat().st_size)
    assert convert(*asked, "-o", tmp_path / "large.tflite") == 0


def test_a_savedmodel_of_logits_gets_its_softmax_in_float16(models, tmp_path, capfd):
    assert convert(models / "saved", "--calibrate", models / "pictures.npy", "--labels", "calm,glad,sad",
                   "--precision", "float16", "-o", tmp_path / "saved.tflite") == 0  # fmt: skip
    assert "a softmax is added" in capfd.readouterr().out
    (scores,) = Model(tmp_path / "saved.tflite", "emotion")(np.load(models / "pictures.npy")[0])
    assert scores.sum() == pytest.approx(1, abs=1e-3)
    assert read_card(tmp_path / "saved.json").labels == ("calm", "glad", "sad")


def layer_of_keras_1(kind, name, nodes=None, **settings):
    layer = {"class_name": kind, "config": {"name": name, **settings}}
    return layer if nodes is None else layer | {"name": name, "inbound_nodes": [[[node, 0, 0] for node in nodes]]}


def write_keras_1(path: Path, config: object, weights: dict[str, list], version: str | None = "1.2.2") -> None:
    """An .h5 as Keras 1 wrote it."""
    import h5py

    with h5py.File(path, "w") as file:
        if version:
            file.attrs["keras_version"] = version.encode()
        file.attrs["model_config"] = json.dumps(config).encode()
        root = file.create_group("model_weights")
        root.attrs["layer_names"] = [name.encode() for name in weights]
        for name, values in weights.items():
            group = root.create_group(name)
            group.attrs["weight_names"] = [f"{name}_{number}".encode() for number in range(len(values))]
            for number, value in enumerate(values):
                group[f"{name}_{number}"] = value


@pytest.fixture(scope="module")
def branching():
    """A small network with two branches in today's Keras, and some pictures."""
    import keras_models  # noqa: F401  # chooses TensorFlow

    # isort: split
    import keras

    keras.utils.set_random_seed(3)
    image = keras.Input((12, 10, 1))
    x = keras.layers.Conv2D(4, 3, padding="same", activation="relu", name="conv")(image)
    x = keras.layers.BatchNormalization(epsilon=1e-3, name="norm")(x)
    x = keras.layers.Add()([keras.layers.Conv2D(4, 1, name="short")(image), x])
    x = keras.layers.Flatten()(keras.layers.AveragePooling2D(2)(x))
    model = keras.Model(image, keras.layers.Dense(3, activation="softmax", name="dense")(x))
    rng = np.random.default_rng(3)
    for layer in model.layers:
        layer.set_weights([rng.uniform(0.1, 1, value.shape) - 0.4 * (value.ndim > 1) for value in layer.get_weights()])
    return model, rng.uniform(0, 1, (5, 12, 10, 1)).astype(np.float32)


@pytest.mark.parametrize("order", ["tf", "th"])
def test_a_model_of_keras_1_gives_what_it_gave(branching, tmp_path, order):
    from keras_models import read_model

    model, pictures = branching
    first = order == "th"
    convolution = {"dim_ordering": order, "border_mode": "same", "subsample": [1, 1], "bias": True}
    config = {"class_name": "Model", "config": {"name": "model_1", "layers": [
        layer_of_keras_1("InputLayer", "input_1", batch_input_shape=[None, 1, 12, 10] if first else [None, 12, 10, 1],
                         input_dtype="float32") | {"name": "input_1", "inbound_nodes": []},
        layer_of_keras_1("Convolution2D", "conv", ["input_1"], nb_filter=4, nb_row=3, nb_col=3, activation="relu",
                         init="glorot_uniform", **convolution),
        layer_of_keras_1("BatchNormalization", "norm", ["conv"], mode=0, axis=1 if first else 3, epsilon=1e-3),
        layer_of_keras_1("Dropout", "dropout", ["norm"], p=0.5),
        layer_of_keras_1("Convolution2D", "short", ["input_1"], nb_filter=4, nb_row=1, nb_col=1, activation="linear",
                         **convolution),
        layer_of_keras_1("Merge", "merge", ["short", "dropout"], mode="sum", concat_axis=-1, layers=None),
        layer_of_keras_1("AveragePooling2D", "pool", ["merge"], pool_size=[2, 2], strides=[2, 2], border_mode="valid",
                         dim_ordering=order),
        layer_of_keras_1("Flatten", "flatten", ["pool"]),
        layer_of_keras_1("Dense", "dense", ["flatten"], output_dim=3, activation="softmax", bias=True),
    ], "input_layers": [["input_1", 0, 0]], "output_layers": [["dense", 0, 0]]}}  # fmt: skip
    weights = {name: model.get_layer(name).get_weights() for name in ("conv", "norm", "short", "dense")}
    if first:  # as Theano kept it: filters and channels first, kernels turned, features flattened channel by channel
        for name in ("conv", "short"):
            weights[name][0] = weights[name][0][::-1, ::-1].transpose(3, 2, 0, 1)
        weights["dense"][0] = weights["dense"][0].reshape(6, 5, 4, 3).transpose(2, 0, 1, 3).reshape(-1, 3)
    write_keras_1(tmp_path / "old.h5", config, weights)
    (outputs,) = read_model(tmp_path / "old.h5")(pictures)
    np.testing.assert_allclose(outputs, model(pictures), atol=1e-5)


def test_a_sequential_model_of_keras_1_is_converted_though_it_tells_no_version(models, tmp_path, capfd):
    rng = np.random.default_rng(4)
    config = {"class_name": "Sequential", "config": [
        layer_of_keras_1("Convolution2D", "conv", nb_filter=4, nb_row=3, nb_col=3, activation="relu", bias=False,
                         border_mode="valid", subsample=[2, 2], dim_ordering="tf",
                         batch_input_shape=[None, 24, 24, 1]),
        layer_of_keras_1("GlobalAveragePooling2D", "pool", dim_ordering="tf"),
        layer_of_keras_1("Dense", "dense", output_dim=3, activation="softmax"),
    ]}  # fmt: skip
    kernels = {"conv": [rng.normal(size=(3, 3, 1, 4))], "dense": [rng.normal(size=(4, 3)), np.zeros(3)]}
    write_keras_1(tmp_path / "plain.h5", config, kernels, version=None)
    assert convert(tmp_path / "plain.h5", "--calibrate", models / "pictures.npy", "--labels", "a,b,c",
                   "-o", tmp_path / "plain.tflite") == 0, capfd.readouterr().err  # fmt: skip
    assert Model(tmp_path / "plain.tflite", "emotion").card.labels == ("a", "b", "c")


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        ("MaxoutDense", {"output_dim": 3}, "MaxoutDense layer 'odd' has no counterpart"),
        ("Merge", {"mode": ["4wEAAA", None, None]}, "Merge layer 'odd' has no counterpart"),
        ("BatchNormalization", {"mode": 2, "epsilon": 1e-3}, "mode 2"),
        ("Dense", {"output_dim": 3, "activation": "hard_sigmoid"}, "hard_sigmoid"),
        ("Dense", {"output_dim": 3}, r"\[\(2, 5\)\], and the architecture asks for \[\(24, 3\), \(3,\)\]"),
    ],
)
def test_what_keras_1_had_alone_is_named(tmp_path, kind, settings, words):
    from keras_models import read_model

    layer = layer_of_keras_1(kind, "odd", batch_input_shape=[None, 24, 24, 1], **settings)
    flat = layer_of_keras_1("Flatten", "flatten", batch_input_shape=[None, 2, 12, 1])
    write_keras_1(tmp_path / "odd.h5", {"class_name": "Sequential", "config": [flat, layer]},
                  {"odd": [np.zeros((2, 5))]})  # fmt: skip
    with pytest.raises(InputError, match=words):
        read_model(tmp_path / "odd.h5")
    inner = {"class_name": "Sequential", "config": [layer]}
    write_keras_1(tmp_path / "odd.h5", {"class_name": "Sequential", "config": [flat, inner]}, {})
    with pytest.raises(InputError, match="Sequential layer 'of no name' is a network of its own"):
        read_model(tmp_path / "odd.h5")


def test_an_architecture_finds_its_weights(models, tmp_path, capfd):
    assert convert(models / "apart.json", "--calibrate", models / "pictures.npy", "--task", "embedding",
                   "--precision", "dynamic", "-o", tmp_path / "apart.tflite") == 0  # fmt: skip
    assert "mean cosine" in capfd.readouterr().out
    assert read_card(tmp_path / "apart.json").task == "embedding"


def test_a_card_never_takes_an_architectures_place(models, capfd):
    before = (models / "apart.json").read_bytes()
    assert convert(models / "apart.json", "--calibrate", models / "pictures.npy", "--task", "embedding",
                   "-o", models / "apart.tflite") == 64  # fmt: skip
    assert "apart.json, where the card goes, is no model's card: take another name" in capfd.readouterr().err
    assert (models / "apart.json").read_bytes() == before


def test_a_normalisation_of_another_axis_tells_nothing_of_the_range(tmp_path):
    import keras
    from keras_models import read_model

    image = keras.Input((24, 24, 1))
    x = keras.layers.BatchNormalization(axis=1)(keras.layers.Conv2D(4, 3)(image))
    x = keras.layers.Dense(3, activation="softmax")(keras.layers.GlobalAveragePooling2D()(x))
    keras.Model(image, x).save(tmp_path / "axis.keras")
    assert read_model(tmp_path / "axis.keras").norm_input() is None


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["tiny.keras", "--calibrate", "pictures.npy", "--labels", "a,b"], 64, "gives 3 scores, and 2 labels"),
        (["tiny.keras", "--calibrate", "pictures.npy", "--labels", "a,,c"], 64, "--labels a,,c: each has 1 to 64"),
        (["tiny.keras"], 64, "--calibrate"),
        (["tiny.keras", "--calibrate", "few.npy"], 66, "at least 64 pictures"),
        (["tiny.keras", "--calibrate", "floats.npy"], 66, "uint8 pictures are wanted"),
        (["pictures.npy", "--calibrate", "pictures.npy"], 66, "not a Keras model"),
        (["missing.h5", "--calibrate", "pictures.npy"], 66, "isn't there"),
        (["two.keras", "--calibrate", "pictures.npy"], 65, "one picture"),
        (["map.keras", "--calibrate", "pictures.npy", "--task", "embedding"], 65,
         "map.keras: a model for embedding gives one vector, and this one gives (1, 1, 1)"),
        (["lambda.keras", "--calibrate", "pictures.npy"], 66, "Lambda 'code': no model file carries"),
        (["wrapped.keras", "--calibrate", "pictures.npy"], 66, "TimeDistributed 'each': no model file carries"),
        (["custom.keras", "--calibrate", "pictures.npy"], 66, "Mine 'mine_1': no model file carries"),
        (["cut.h5", "--calibrate", "pictures.npy"], 66, "damaged"),
        (["torn", "--calibrate", "pictures.npy"], 66, "torn: a SavedModel that can't be read"),
        (["lost.keras", "--calibrate", "pictures.npy", "--labels", "a,b,c"], 65, "its answers are no numbers"),
        (["of_two", "--calibrate", "pictures.npy"], 65, "of_two: its input is (None, 24, 24, 2)"),
        (["tiny.keras", "--calibrate", "pictures.npy", "--labels", "a,b,c", "--float-layers", "9", "--io", "uint8"], 65,
         "nothing is left in int8 that could take or give uint8"),
        (["strange", "--calibrate", "pictures.npy", "--labels", "a,b,c"], 65, "Erfinv"),
        (["tiny.keras", "--calibrate", "pictures.npy", "--labels", "a,b,c", "--min-agreement", "1.01"], 1, "written"),
        (["tiny.keras", "--calibrate", "pictures.npy", "--min-agreement", "97"], 64, "0.97 for 97 %"),
        (["tiny.keras", "--calibrate", "pictures.npy", "--float-layers", "-1"], 64, "a whole number from 0"),
        (["tiny.keras", "--calibrate", "pictures.npy", "--range", "1", "1"], 64, "--range 1 1"),
        (["tiny.keras", "--calibrate", "pictures.npy", "--precision", "float16", "--io", "uint8"], 64, "--io"),
        (["tiny.keras", "--calibrate", "pictures.npy", "--task", "embedding", "--labels", "a,b"], 64, "has none"),
        (["tiny.keras", "--calibrate", "pictures.npy", "--labels", "a,b,c", "--decoder", "yunet"], 64, "has softmax"),
        (["tiny.keras", "--calibrate", "pictures.npy", "--colour", "rgb"], 65, "(24, 24, 3) is asked for"),
        (["tiny.keras", "--calibrate", "pictures.npy", "--size", "32", "32"], 65, "(32, 32, 1) is asked for"),
        (["tiny.keras", "--calibrate", "nowhere"], 66, "nowhere isn't there"),
        (["tiny.keras", "--calibrate", "tiny.keras"], 66, "a folder of pictures is wanted"),
        (["recurrent.keras", "--calibrate", "pictures.npy", "--labels", "a,b,c"], 65, "no int8 for WHILE, as a"),
        (["subclassed.keras", "--calibrate", "pictures.npy"], 66, "the model's own class Own: no model file carries"),
        (["channels_first.keras", "--calibrate", "pictures.npy"], 65, "channels first, which TensorFlow Lite"),
        (["batch_of_8", "--calibrate", "pictures.npy", "--labels", "a,b,c"], 65, "its batch is fixed at 8"),
        (["whole_numbers.keras", "--calibrate", "pictures.npy", "--range", "0", "1"], 64, "--range 0 255"),
        (["tiny.keras", "--calibrate", "short.npz", "--labels", "a,b,c"], 66, "a number for each"),
        (["tiny.keras", "--calibrate", "cut.npz"], 66, "is it whole"),
    ],
)  # fmt: skip
def test_what_quantize_refuses_is_told_and_leaves_nothing(models, tmp_path, arguments, code, words, capfd):
    np.save(models / "few.npy", np.zeros((5, 24, 24, 1), np.uint8))
    np.save(models / "floats.npy", np.zeros((80, 24, 24, 1), np.float32))
    pictures = np.load(models / "pictures.npy")
    np.savez(models / "short.npz", x=pictures, y=np.arange(95) % 3)
    (models / "cut.npz").write_bytes((models / "short.npz").read_bytes()[:900])
    named = [str(models / a) if (models / a).exists() or a == "missing.h5" else a for a in arguments]
    assert convert(*named, "-o", tmp_path / "out.tflite") == code
    assert words in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_labels_that_the_model_lacks_stop_nothing(models, tmp_path, capfd):
    pictures = np.load(models / "pictures.npy")
    np.savez(tmp_path / "from_1.npz", x=pictures, y=np.arange(96) % 3 + 1.0)
    assert convert(models / "tiny.keras", "--calibrate", tmp_path / "from_1.npz", "--labels", "a,b,c",
                   "--min-agreement", 0.7, "-o", tmp_path / "out.tflite") == 0  # fmt: skip
    told = capfd.readouterr().out
    assert "labels: the pictures' are 1 to 3, and the model's 3 are counted from 0: no accuracy is told" in told
    assert "that are labelled" not in told


def test_a_model_that_takes_whole_numbers_gets_pixels_as_they_are(models, tmp_path, capfd):
    assert convert(models / "whole_numbers.keras", "--calibrate", models / "pictures.npy", "--labels", "a,b,c",
                   "--min-agreement", 0.7, "-o", tmp_path / "out.tflite") == 0, capfd.readouterr().err  # fmt: skip
    assert read_card(tmp_path / "out.json").input.range == (0, 255)


@pytest.mark.parametrize(("decoder", "around"), [("blazeface", 0), ("edgefer-centre", 114)])
def test_a_detector_is_calibrated_with_what_it_sees_around_a_picture(tmp_path, decoder, around):
    from calibration_pictures import read_pictures

    np.save(tmp_path / "wide.npy", np.full((80, 20, 40, 3), 255, np.uint8))
    card = ModelCard("edgefer.model/1", "x", "detector", decoder, ModelInput(32, 32, "rgb", (-1.0, 1.0)))
    calibrate, _ = read_pictures(tmp_path / "wide.npy", card)
    assert (calibrate.images[0][:16] == 255).all()
    assert (calibrate.images[0][16:] == around).all()


def test_upsampling_stays_in_int8():
    import keras
    from float_rewrites import without_tiles
    from keras_models import KerasModel
    from precisions import layers_of
    from tflite_graph import run

    image = keras.Input((6, 6, 1))
    enlarged = keras.layers.UpSampling2D((2, 3))(keras.layers.Conv2D(4, 3)(image))
    floats = KerasModel(Path("enlarged.keras"), keras, keras.Model(image, enlarged)).to_tflite(6, 6, 1)
    assert {layer.operator for layer in layers_of(floats) if not layer.has_int8} == {"TILE"}
    joined = without_tiles(floats)
    assert all(layer.has_int8 for layer in layers_of(joined))
    pictures = list(np.random.default_rng(0).normal(size=(3, 6, 6, 1)).astype(np.float32))
    np.testing.assert_array_equal(run(joined, pictures), run(floats, pictures))


def test_scores_far_below_the_best_cost_a_softmax_no_precision():
    import keras
    from keras_models import KerasModel
    from precisions import Int8
    from tflite_graph import run

    picture = keras.Input((8, 8, 1))
    scores = keras.layers.Dense(3, name="scores")(keras.layers.GlobalAveragePooling2D()(picture))
    network = keras.Model(picture, keras.layers.Softmax()(scores))
    network.get_layer("scores").set_weights([np.array([[1.0, -1.0, -30.0]]), np.array([-0.6, 0.6, 0.0])])
    floats = KerasModel(Path("scores.keras"), keras, network).to_tflite(8, 8, 1)
    # Of the third score's range of 30, a 255th would be more than what the first two are apart in half of these.
    light = np.concatenate([np.linspace(0.2, 0.57, 40), np.linspace(0.63, 1.0, 40)])
    pictures = [np.full((8, 8, 1), value, np.float32) for value in light]
    (expected,) = run(floats, pictures)
    (given,) = run(Int8(floats, pictures, (0.0, 1.0), [expected]).write("float32"), pictures)
    np.testing.assert_array_equal(given.argmax(1), expected.argmax(1))


def test_a_normalisation_after_an_activation_is_one_layer_with_a_scale_for_each_channel():
    import keras
    from float_rewrites import normalised_at_once
    from keras_models import KerasModel
    from precisions import layers_of
    from tflite_graph import run

    keras.utils.set_random_seed(1)
    image = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(4, 3, padding="same", activation="relu")(image)
    x = keras.layers.MaxPooling2D()(keras.layers.BatchNormalization(name="norm")(x))
    x = keras.layers.ReLU()(x + keras.ops.array([[[[1.0]]]]))  # one value for all channels is another matter
    network = keras.Model(image, keras.layers.Conv2D(2, 3, padding="same")(x))
    network.get_layer("norm").set_weights([np.geomspace(0.01, 9, 4), np.arange(4.0), np.arange(4.0), np.ones(4)])
    floats = KerasModel(Path("normalised.keras"), keras, network).to_tflite(8, 8, 1)
    merged = normalised_at_once(floats)
    assert [layer.operator for layer in layers_of(floats)] == [
        "CONV_2D", "MUL", "ADD", "MAX_POOL_2D", "ADD", "CONV_2D",
    ]  # fmt: skip
    assert [layer.operator for layer in layers_of(merged)] == [
        "CONV_2D", "DEPTHWISE_CONV_2D", "MAX_POOL_2D", "ADD", "CONV_2D",
    ]  # fmt: skip
    pictures = list(np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32))
    np.testing.assert_allclose(run(merged, pictures)[0], run(floats, pictures)[0], atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("Conv2D", {"filters": 3, "kernel_size": 3}), ("DepthwiseConv2D", {"kernel_size": 3}), ("Dense", {"units": 3})],
)
def test_a_channel_whose_weights_died_keeps_its_bias(kind, settings):
    import keras
    from keras_models import KerasModel
    from precisions import Int8
    from tflite_graph import run

    keras.utils.set_random_seed(1)
    picture = keras.Input((4, 4, 3))
    layer = getattr(keras.layers, kind)(**settings)
    network = keras.Model(picture, layer(keras.layers.Flatten()(picture) if kind == "Dense" else picture))
    kernel, _ = layer.get_weights()
    kernel.reshape(-1, 3)[:, 1] = 1e-13
    layer.set_weights([kernel, np.array([0.5, 2.5, 0.0])])
    floats = KerasModel(Path("dead.keras"), keras, network).to_tflite(4, 4, 3)
    pictures = list(np.random.default_rng(0).uniform(size=(8, 4, 4, 3)).astype(np.float32))
    (expected,) = run(floats, pictures)
    (given,) = run(Int8(floats, pictures, (0.0, 1.0), [expected]).write("float32"), pictures)
    np.testing.assert_allclose(given, expected, atol=np.ptp(expected) / 100)


def uneven(keras, rest):
    """A network whose first layer writes channels of very different widths, far off zero, with what `rest` adds."""
    keras.utils.set_random_seed(1)
    widths = np.geomspace(0.01, 10, 8)
    image = keras.Input((12, 12, 1))
    first = keras.layers.Conv2D(8, 3, padding="same")
    network = keras.Model(image, rest(keras.layers, first(image)))
    kernel, bias = first.get_weights()
    first.set_weights([kernel * widths, (bias + 3) * widths])
    return network, widths


def mean_of_channels(x):
    import keras

    return keras.ops.mean(x, -1, keepdims=True)


def two_sets_of_pictures():
    rng = np.random.default_rng(0)
    return (list(rng.uniform(size=(24, 12, 12, 1)).astype(np.float32)) for _ in range(2))


@pytest.mark.parametrize(
    "rest",
    [
        lambda layers, x: layers.Dense(4)(layers.GlobalAveragePooling2D()(x)),
        lambda layers, x: layers.Dense(4)(layers.Flatten()(layers.MaxPooling2D()(x))),
        lambda layers, x: layers.Conv2D(4, 3, padding="same")(layers.ReLU()(x)),
        lambda layers, x: layers.DepthwiseConv2D(3, depth_multiplier=2)(layers.MaxPooling2D()(layers.LeakyReLU()(x))),
    ],
    ids=["average", "flat", "convolution", "depthwise"],
)
def test_channels_of_all_widths_are_made_alike(rest):
    import keras
    from float_rewrites import equalised
    from keras_models import KerasModel
    from precisions import Int8
    from tflite_graph import run

    network, widths = uneven(keras, rest)
    kernel, bias = network.layers[-1].get_weights()
    each = np.tile((1 / widths).reshape(-1, 1), (kernel.shape[-2] // 8, 1))  # what is wide counts for little
    network.layers[-1].set_weights([kernel * each, bias])
    floats = KerasModel(Path("uneven.keras"), keras, network).to_tflite(12, 12, 1)
    pictures, _ = two_sets_of_pictures()
    expected = run(floats, pictures)
    plain, equal = (Int8(way, pictures, (0.0, 1.0), expected) for way in (floats, equalised(floats, pictures)))
    assert equal.noise < plain.noise / 4


@pytest.mark.parametrize(
    ("rest", "is_changed"),
    [
        (lambda layers, x: layers.Conv2D(4, 3, padding="same")(x), True),
        (lambda layers, x: layers.Conv2D(4, 3)(x), True),
        (lambda layers, x: layers.Conv2D(8, 3, groups=2)(x), False),
        (lambda layers, x: layers.DepthwiseConv2D(3, depth_multiplier=2)(x), True),
        (lambda layers, x: layers.Conv2D(4, 1)(layers.PReLU()(x)), True),
        (lambda layers, x: layers.Conv2D(4, 1)(layers.ReLU(6)(x)), False),
        (lambda layers, x: layers.Conv2D(4, 3)(layers.ZeroPadding2D()(x)), True),
        (lambda layers, x: layers.Conv2D(4, 1)(layers.AveragePooling2D(3, 2, "same")(x)), True),
        (lambda layers, x: layers.Dense(3, use_bias=False)(layers.Dense(8, use_bias=False)(x)), True),
        (lambda layers, x: (same := layers.Conv2D(8, 1))(same(x)), True),
        (lambda layers, x: [x, layers.Conv2D(4, 1)(x)], False),
        (lambda layers, x: layers.DepthwiseConv2D(3)(layers.Reshape((6, 12, 16))(x)), False),
        (lambda layers, x: layers.Conv2D(3, 3)(layers.Reshape((6, 12, 16))(x)), True),
        (lambda layers, x: layers.Dense(3)(layers.GlobalAveragePooling1D()(layers.Reshape((144, 8))(x))), True),
        (lambda layers, x: layers.Conv2D(3, 3)(mean_of_channels(x)), False),
    ],
    ids=["edge", "no edge", "grouped", "multiplied", "prelu", "relu6", "padding", "pooling", "no bias", "twice",
         "output", "put together", "put together, mixed", "rows", "over channels"],
)  # fmt: skip
def test_equalising_changes_no_answer(rest, is_changed):
    import keras
    from float_rewrites import equalised
    from keras_models import KerasModel
    from tflite_graph import Graph, run

    network, _ = uneven(keras, rest)
    floats = KerasModel(Path("uneven.keras"), keras, network).to_tflite(12, 12, 1)
    pictures, others = two_sets_of_pictures()
    equal = equalised(floats, pictures)
    assert (equal != Graph(floats).content()) == is_changed
    for expected, given in zip(run(floats, others), run(equal, others), strict=True):
        np.testing.assert_allclose(given, expected, atol=np.abs(expected).max() * 1e-5)


def test_a_channel_that_calibration_never_woke_stays_as_it_is():
    import keras
    from float_rewrites import equalised
    from keras_models import KerasModel
    from tflite_graph import Graph, Runner

    network, _ = uneven(keras, lambda layers, x: layers.Conv2D(4, 1)(layers.ReLU()(x)))
    kernel, bias = network.layers[1].get_weights()
    network.layers[1].set_weights([kernel, np.where(np.arange(8) == 7, -99, bias)])
    floats = KerasModel(Path("asleep.keras"), keras, network).to_tflite(12, 12, 1)
    pictures, _ = two_sets_of_pictures()
    reach = []
    for content in (floats, equalised(floats, pictures)):
        runner = Runner(content, every_tensor=True)
        runner(np.full((12, 12, 1), 99, np.float32))
        (first, _) = Graph(content).weighted()
        reach.append(runner.value(int(first.outputs[0])).max((0, 1, 2)))
    assert 0 < reach[1][7] / reach[1][6] < 2 * reach[0][7] / reach[0][6]


def test_what_answers_otherwise_is_not_chosen(monkeypatch):
    import keras
    import quantize
    from keras_models import KerasModel
    from tflite_graph import Graph, run

    def spoilt(floats, samples):
        graph = Graph(floats)
        for operator in graph.weighted():  # nothing but zeros, of which int8 loses none
            for place, values in enumerate(graph.weights(operator), 1):
                graph.give(operator, place, values * 0)
        return graph.content()

    network, _ = uneven(keras, lambda layers, x: layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))
    floats = KerasModel(Path("uneven.keras"), keras, network).to_tflite(12, 12, 1)
    monkeypatch.setattr(quantize, "equalised", spoilt)
    images = list(np.random.default_rng(0).integers(0, 256, (8, 12, 12, 1), np.uint8))
    asked = ModelInput(12, 12, "gray", (0.0, 1.0))
    card = ModelCard("edgefer.model/1", "x", "embedding", "unit-vector", asked, crop=Crop("points"))
    content = quantize.to_int8(floats, card, images, images, "float32", 0)
    samples = [image.astype(np.float32) / 255 for image in images]
    (expected,), (given,) = run(floats, samples), run(content, samples)
    np.testing.assert_allclose(given, expected, atol=np.abs(expected).max() / 10)


def test_pixels_that_the_model_scales_itself_are_no_normalisation():
    import keras
    from float_rewrites import normalised_at_once
    from keras_models import KerasModel
    from precisions import layers_of

    image = keras.Input((8, 8, 3))
    scaled = keras.layers.Rescaling(1 / 127.5, -1)(image)
    network = keras.Model(image, keras.layers.Conv2D(2, 3, padding="same")(scaled))
    floats = KerasModel(Path("scaled.keras"), keras, network).to_tflite(8, 8, 3)
    assert [layer.operator for layer in layers_of(floats)] == ["MUL", "ADD", "CONV_2D"]
    assert layers_of(normalised_at_once(floats)) == layers_of(floats)


def test_biases_make_up_for_what_int8_adds_on_average():
    import keras
    from keras_models import KerasModel
    from precisions import Int8, layers_of, unbiased
    from tflite_graph import Graph, run

    keras.utils.set_random_seed(1)
    biases = keras.initializers.RandomUniform(0.2, 1)
    image = keras.Input((12, 12, 1))
    x = keras.layers.Conv2D(4, 3, activation="relu", bias_initializer=biases)(image)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.DepthwiseConv2D(3, bias_initializer=biases)(x))
    x = keras.layers.Dense(6, activation="relu", bias_initializer=biases)(x)
    network = keras.Model(image, keras.layers.Dense(3, use_bias=False)(x))
    floats = KerasModel(Path("biased.keras"), keras, network).to_tflite(12, 12, 1)
    pictures, others = two_sets_of_pictures()
    (expected,) = run(floats, others)
    int8 = Int8(floats, pictures, (0.0, 1.0), run(floats, pictures))
    for floating in ((), tuple(layers_of(floats)[:1])):
        graph = Graph(int8.write("int8", floating))
        for operator in graph.weighted()[bool(floating) : -1]:
            _, bias = graph.weights(operator)
            graph.give(operator, 2, (bias * 1.3).astype(np.int32))
        (spoilt,), (mended,) = (
            run(content, others) for content in (graph.content(), unbiased(graph.content(), floats, pictures, 1.0))
        )
        assert np.abs(spoilt - expected).mean() > np.ptp(expected) / 20
        assert np.abs(mended - expected).mean() < np.ptp(expected) / 100


def test_one_end_of_a_range_is_clipped_without_the_other():
    from precisions import best_range

    values = np.append(np.linspace(0, 10, 300_000), -10).astype(np.float32)
    low, high = best_range(values, -10.0, 10.0, softmax=False)
    assert -5 < low < 0
    assert high == 10


def test_the_range_of_training_is_least_strange_and_most_often_right():
    import keras
    from input_range import better_range, try_ranges
    from keras_models import KerasModel

    rng = np.random.default_rng(0)
    dark, bright = rng.integers(40, 100, (60, 8, 8)), rng.integers(150, 210, (60, 8, 8))
    images = list(np.concatenate([dark, bright]).astype(np.uint8))
    labels = np.repeat([0, 1], 60)
    picture = keras.Input((8, 8, 1))
    x = keras.layers.BatchNormalization(name="norm")(picture)
    x = keras.layers.Dense(2, activation="softmax", name="brighter")(keras.layers.GlobalAveragePooling2D()(x))
    network = keras.Model(picture, x)
    in_training = np.stack(images) / 127.5 - 1
    mean, variance = [in_training.mean()], [in_training.var()]
    network.get_layer("norm").set_weights([np.ones(1), np.zeros(1), np.array(mean), np.array(variance)])
    network.get_layer("brighter").set_weights([np.array([[-9.0, 9.0]]), np.zeros(2)])
    model = KerasModel(Path("ranges.keras"), keras, network)
    for known in (None, labels):
        trials = try_ranges(model, ModelInput(8, 8, "gray", (0.0, 1.0)), images, known)
        assert min(trials, key=lambda trial: trial.strangeness).range == (-1.0, 1.0)
        assert better_range(trials) == (-1.0, 1.0)
    right = next(trial for trial in trials if trial.range == (-1.0, 1.0))
    assert (right.accuracy, trials[0].accuracy) == (1.0, 0.5)
    assert right.strangeness < 0.01
    # A picture whose label the model doesn't know is neither right nor wrong.
    assert (
        try_ranges(model, ModelInput(8, 8, "gray", (-1.0, 1.0)), images, np.where(labels, labels, -1))[0].accuracy == 1
    )
    few = np.where(np.arange(120) < 30, labels, -1)
    assert try_ranges(model, ModelInput(8, 8, "gray", (-1.0, 1.0)), images, few)[0].accuracy is None


def test_no_usual_range_being_that_of_training_is_told(capsys):
    from input_range import Trial
    from quantize import tell_range

    card = ModelCard("edgefer.model/1", "x", "emotion", "softmax", ModelInput(48, 48, "gray", (0, 1)))
    for least, told in ((0.6, True), (0.4, False)):
        tell_range(card, [Trial((0.0, 1.0), None, 0.7, 0.0), Trial((-1.0, 1.0), None, least, 0.0)])
        assert ("none of these ranges is like" in capsys.readouterr().out) == told


def test_a_wrong_range_is_told_by_accuracy_and_by_the_normalisation():
    from input_range import Trial, better_range

    right, wrong = (0.0, 1.0), (-1.0, 1.0)
    assert better_range([Trial(wrong, 0.4, None, 0.06), Trial(right, 0.6, None, 0.06)]) == right
    assert better_range([Trial(right, 0.6, None, 0.06), Trial(wrong, 0.62, None, 0.06)]) is None, "within chance"
    assert better_range([Trial(wrong, None, 1.4, 0.0), Trial(right, None, 0.1, 0.0)]) == right
    assert better_range([Trial(right, None, 0.3, 0.0), Trial(wrong, None, 0.1, 0.0)]) is None
    assert better_range([Trial(right, None, None, 0.0), Trial(wrong, None, None, 0.0)]) is None, "nothing tells"
    few = [Trial(wrong, 0.5, 1.4, 0.14), Trial(right, 0.63, 0.1, 0.14)]
    assert better_range(few) == right, "of few labels the share that is right says too little, the statistics enough"
    assert better_range([Trial(wrong, 0.5, 1.4, 0.14), Trial(right, 0.45, 0.1, 0.14)]) is None, "they contradict"


def test_another_order_of_the_labels_is_told_and_counted_by(capsys):
    from quantize import SEVEN, in_order

    rng = np.random.default_rng(0)
    card = ModelCard("edgefer.model/1", "x", "emotion", "softmax", ModelInput(48, 48, "gray", (0, 1)), labels=SEVEN)
    truth = rng.integers(7, size=200)
    said = np.where(rng.random(200) < 0.7, truth, rng.integers(7, size=200))
    scores = np.eye(7, dtype=np.float32)[said]
    assert (in_order(card, scores, truth)[1] == truth).all()
    assert capsys.readouterr().out == ""
    neutral_first = [6, *range(6)]
    labels = np.append(truth[1:], -1)
    names, found = in_order(card, np.roll(scores, -1, 0)[:, neutral_first], labels)
    assert names == ("neutral", *SEVEN[:6])
    assert found.tolist() == [*((truth[1:] + 1) % 7), -1]
    told = capsys.readouterr().out
    right = (said[1:] == truth[1:]).mean()
    assert f"--labels neutral,angry,disgust,fear,happy,sad,surprise would be right {right:.0%} of the time" in told
    one_thing = np.eye(7, dtype=np.float32)[np.zeros(200, int)]
    assert (in_order(card, one_thing, truth)[1] == truth).all(), "right by chance in any order"
    uneven = np.repeat([0, 1, 2], [100, 60, 40])
    always = np.eye(7, dtype=np.float32)[np.full(200, 2)]
    assert (in_order(card, always, uneven)[1] == uneven).all(), "so is the commonest"
    assert (in_order(card, scores[:30, neutral_first], truth[:30])[1] == truth[:30]).all(), "too few"
    five = np.flatnonzero((labels >= 0) & (labels < len(SEVEN) - 2))
    told, _ = in_order(card, np.roll(scores, -1, 0)[five][:, neutral_first], labels[five])
    assert told == SEVEN, "of two labels there is no picture"
    assert "another order would be as right" in capsys.readouterr().out


@pytest.mark.parametrize("named", [False, True])
def test_an_order_that_the_labelled_pictures_show_is_taken_unless_one_is_named(tmp_path, capfd, named):
    """A model that counts FER2013's seven by name, as Keras counts folders, and tells them by how bright they are."""
    import keras
    from quantize import SEVEN

    by_name, levels = sorted(SEVEN), np.linspace(0.1, 0.9, 7)
    rng = np.random.default_rng(0)
    for number in range(280):
        level = levels[number % 7] * 255 + rng.normal(0, 4, (24, 24))
        path = tmp_path / "faces" / by_name[number % 7] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.clip(level, 0, 255).astype(np.uint8))
    picture = keras.Input((24, 24, 1))
    nearest = keras.layers.Dense(7, activation="softmax", name="nearest")
    network = keras.Model(picture, nearest(keras.layers.GlobalAveragePooling2D()(picture)))
    nearest.set_weights([80 * levels[None], -40 * levels**2])
    network.save(tmp_path / "model.keras")
    asked = ["--labels", ",".join(SEVEN)] if named else []
    assert convert(tmp_path / "model.keras", "--calibrate", tmp_path / "faces", "--min-agreement", 0.9,
                   "-o", tmp_path / "out.tflite", *asked) == 0, capfd.readouterr().err  # fmt: skip
    told = capfd.readouterr().out
    assert f"--labels {','.join(by_name)} would be right" in told
    assert read_card(tmp_path / "out.json").labels == (SEVEN if named else tuple(by_name))
    assert ("that order fits the labelled pictures" in told) != named


def test_seven_labels_are_the_trees_own_where_it_has_others(capsys):
    from quantize import SEVEN, with_labels

    card = ModelCard("edgefer.model/1", "x", "emotion", "softmax", ModelInput(48, 48, "gray", (0, 1)))
    assert with_labels(card, None, 7, tuple(sorted(SEVEN))).labels == SEVEN
    assert with_labels(card, None, 7, ()).labels == SEVEN
    ck = ("angry", "contempt", "disgust", "fear", "happy", "sad", "surprise")
    assert with_labels(card, None, 7, ck).labels == ck
    assert "the folders of --calibrate by name" in capsys.readouterr().out


# Faces

VOTES = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", "unknown", "NF")


def test_faces_come_from_a_csv_and_its_votes(tmp_path):
    from emotion_faces import load_faces
    from train_emotion import soft_targets

    pixels = " ".join(["7"] * 48 * 48)
    (tmp_path / "fer2013.csv").write_text(
        f"emotion,pixels,Usage\n3,{pixels},Training\n6,{pixels},PublicTest\n0,{pixels[:-1]}8,PrivateTest\n"
    )
    (tmp_path / "fer2013new.csv").write_text(
        "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF\n"
        "Training,a.png,1,9,0,0,0,0,0,0,0,0\nPublicTest,,0,0,0,0,0,0,0,0,0,0\nPrivateTest,c.png,0,0,0,0,9,0,1,0,0,0\n"
    )
    faces = load_faces(tmp_path)
    assert [faces.names[label] for label in faces.labels] == ["happy", "neutral", "angry"]
    assert faces.usage.tolist() == [0, 1, 2]
    assert faces.votes_match.tolist() == [True, False, True]
    learnt = np.zeros((3, 7))
    learnt[0, [3, 6]] = 19 / 20, 1 / 20  # happy by its label, ten votes' worth, and nine of FER+'s; one says neutral
    learnt[1, 6] = 1  # nobody voted: by its label alone
    learnt[2, [0, 2]] = 19 / 20, 1 / 20
    np.testing.assert_allclose(soft_targets(faces), learnt, atol=1e-6)
    assert faces.dup_group[0] == faces.dup_group[1] != faces.dup_group[2]
    two = load_faces(tmp_path, ["happy", "anger"])
    assert two.names == ("happy", "angry")
    assert two.labels.tolist() == [0, 1]
    with pytest.raises(InputError, match="'angry' is named twice"):
        load_faces(tmp_path, ["anger", "happy", "angry"])
    with pytest.raises(InputError, match="only the class 'happy' is named"):
        load_faces(tmp_path, ["happy"])
    with pytest.raises(InputError, match="no class 'bored'"):
        load_faces(tmp_path, ["bored"])
    votes = (tmp_path / "fer2013new.csv").read_text()
    (tmp_path / "fer2013new.csv").write_text(votes.replace("NF\n", "NF,label\n").replace(",0\n", ",0,7\n"))
    assert (load_faces(tmp_path).votes == faces.votes).all(), "by the columns' names"
    for was, now, words in (
        ("1,9,", "1,,", "line 2: not a row of votes"),
        ("PublicTest,", "Training,", "line 3: 'Training', where fer2013.csv has another split"),
        ("anger", "angry", "the column 'anger' is missing"),
    ):
        (tmp_path / "fer2013new.csv").write_text(votes.replace(was, now))
        with pytest.raises(InputError, match=words):
            load_faces(tmp_path)
    for row in ("3,1 2 3,Training\n", "3", f"3,{pixels}"):
        (tmp_path / "fer2013.csv").write_text(f"emotion,pixels,Usage\n{row}")
        with pytest.raises(InputError, match="line 2"):
            load_faces(tmp_path)
    (tmp_path / "fer2013new.csv").unlink()
    (tmp_path / "fer2013.csv").write_text(f"emotion, Usage, pixels\n3, Training, {pixels}\n")  # icml_face_data.csv's
    assert load_faces(tmp_path).labels.tolist() == [3]
    (tmp_path / "fer2013.csv").write_text(f"emotion,pixels,Usage\n3,{pixels},Training\n", encoding="utf-8-sig")
    ours, table = load_faces(tmp_path), tmp_path / "mine.csv"
    assert ours.is_fer2013, "as Excel saves it"
    shutil.copy(tmp_path / "fer2013.csv", table)
    assert not load_faces(table).is_fer2013
    table.write_bytes(b"emotion,pixels,Usage,\xe4\n")
    with pytest.raises(InputError, match=r"mine\.csv: not a table in UTF-8"):
        load_faces(table)


def test_what_isnt_a_face_or_stands_in_the_test_is_neither_learnt_nor_validated_on(tmp_path):
    """Twenty images to train on, of which fifteen are test images too, and FER+'s voters see no face in another one."""
    from emotion_faces import TEST, load_faces
    from train_emotion import split

    rows = [f"{n % 7},{' '.join([str(n)] * 48 * 48)}" for n in range(20)]
    usage = ["Training"] * 20 + ["PrivateTest"] * 15
    (tmp_path / "fer2013.csv").write_text(
        "\n".join(["emotion,pixels,Usage", *map(",".join, zip(rows + rows[:15], usage, strict=True))])
    )
    faces = load_faces(tmp_path)
    learnt, held = split(faces)
    assert (len(learnt), len(held)) == (4, 1), "a tenth of five, rounded up"
    assert sorted(faces.images[[*learnt, *held], 0, 0]) == [15, 16, 17, 18, 19]
    assert not set(faces.dup_group[held]) & set(faces.dup_group[faces.usage == TEST])

    no_face, face = learnt[0], ["9" if column == "happiness" else "0" for column in VOTES]
    votes = [f"{split},{','.join(face)}" for split in usage]
    votes[no_face] = "Training," + ",".join("6" if column == "NF" else "0" for column in VOTES)
    (tmp_path / "fer2013new.csv").write_text("\n".join([f"Usage,{','.join(VOTES)}", *votes]))
    assert sorted(split(load_faces(tmp_path))[0]) == sorted(learnt[1:])


def test_a_split_with_hardly_a_picture_checks_nothing(tmp_path):
    from calibration_pictures import read_pictures

    rng = np.random.default_rng(0)
    for number in range(80):
        folder = tmp_path / ("test" if number == 0 else "train") / ("happy" if number % 2 else "sad")
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{number}.png"), rng.integers(0, 256, (48, 48), np.uint8))
    calibrate, check = read_pictures(tmp_path, find_card("emotion-48"))
    assert (len(calibrate.images), len(check.images)) == (60, 20)


def test_faces_come_from_a_tree_as_the_model_takes_them(tmp_path):
    from emotion_faces import load_faces

    red = np.full((9, 9, 3), (0, 0, 255), np.uint8)
    for name in ("train/happy/1.png", "train/sad/2.png", "train/sad/._2.png", "train/.ipynb_checkpoints/3.png",
                 "train/sad/.ipynb_checkpoints/5.png", "screenshots/4.png"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / name), red)
    faces = load_faces(tmp_path)
    assert faces.names == ("happy", "sad")
    assert faces.images.shape == (2, 48, 48)
    coloured = load_faces(tmp_path, model_input=ModelInput(20, 10, "rgb", (0.0, 1.0)))
    assert coloured.images.shape == (2, 10, 20, 3)
    assert coloured.images[0, 5, 5].tolist() == [0, 0, 255]
    for name in ("afraid", "surprised", "angry"):
        (tmp_path / "train" / name).mkdir()
        cv2.imwrite(str(tmp_path / "train" / name / "1.png"), red)
    assert load_faces(tmp_path).names == ("fear", "angry", "happy", "sad", "surprise"), "as Keras counts the folders"


def test_what_is_wrong_with_a_tree_is_told(tmp_path, capsys, monkeypatch):
    import train_emotion
    from emotion_faces import TEST, load_faces

    for number in range(120):
        split, label = ("Testing" if number < 20 else "Training"), "happy" if number % 2 else "sad"
        path = tmp_path / split / label / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((48, 48), number, np.uint8))
    (tmp_path / "spare" / "sad").mkdir(parents=True)
    assert len(load_faces(tmp_path).rows(TEST)) == 20
    assert "passed over, beside Testing/: spare" in capsys.readouterr().err
    (broken := tmp_path / "Training" / "sad" / "50.png").write_bytes(b"no picture")
    assert len(load_faces(tmp_path).labels) == 119
    assert f"{tmp_path}: left out: 1 picture(s), the first: {broken}" in capsys.readouterr().err
    for number in (60, 62):
        (broken.parent / f"{number}.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="3 of 120 pictures can't be read"):
        load_faces(tmp_path)
    for number in (50, 60, 62):
        (broken.parent / f"{number}.png").unlink()
    (tmp_path / "Training" / "fear").mkdir()
    monkeypatch.setattr(sys, "argv", ["train_emotion.py", "--data", str(tmp_path), "--out", str(tmp_path / "run")])
    with pytest.raises(InputError, match="no image of fear to train on; leave that out with --classes happy,sad"):
        train_emotion.main()


def test_a_classic_network_stops_early_and_goes_on_where_it_was(models, tmp_path, monkeypatch):
    import keras
    import train_emotion
    import training

    def train(*more: object) -> None:
        asked = ["--data", models / "faces", "--arch", "fer2013-cnn", "--out", tmp_path, "--limit", 16, *IN_A_THREAD]
        monkeypatch.setattr(sys, "argv", ["train_emotion.py", *map(str, asked), *map(str, more)])
        train_emotion.main()

    train("--epochs", 1, "--rate", 1e-12)
    (first,) = training.history(tmp_path)
    kept = keras.models.load_model(tmp_path / "best.keras", compile=False).get_weights()
    # As if it had trained for long, and the first epoch had been the best.
    history = [first | {"val_loss": first["val_loss"] - 1}, *[first] * 9]
    (tmp_path / "history.json").write_text(json.dumps(history))
    train("--epochs", 30, "--rate", 2e-12, "--resume")
    rate = keras.models.load_model(tmp_path / "checkpoint.keras").optimizer.learning_rate
    assert float(rate) == pytest.approx(2e-12), "the one that is asked for, not the checkpoint's"
    history = training.history(tmp_path)
    assert len(history) == 11, "ten epochs without a better one"
    assert [training.is_over(history[:count], 10) for count in (0, 10, 11)] == [False, False, True]
    best = keras.models.load_model(tmp_path / "best.keras", compile=False).get_weights()
    assert all(np.array_equal(one, other) for one, other in zip(kept, best, strict=True))


def test_what_is_left_of_a_damaged_run_is_told(tmp_path):
    import keras
    import training

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.save(tmp_path / "checkpoint.keras")
    (tmp_path / "history.json").write_text("[{}]")
    assert training.resume(model, tmp_path) == [{}]
    for name, words in (("history.json", "can't be read"), ("checkpoint.keras", "or damaged")):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:3])
        with pytest.raises(InputError, match=f"{name}: .*{words}.* begin the run anew, without --resume"):
            training.resume(model, tmp_path)


def test_the_classics_are_what_they_were():
    from emotion_networks import NETWORKS

    def made_of(name: str) -> list[str]:
        """Each layer: what it is, its kernel, how wide it is, and its activation."""
        told = []
        for layer in NETWORKS[name].build(5).layers[1:]:
            of = layer.get_config()
            learns = [*of.get("kernel_size", ()), of.get("filters", of.get("units")), of.get("activation")]
            told.append(" ".join(map(str, [type(layer).__name__, *filter(None, learns)])))
        return told

    def pair(width: int) -> list[str]:
        return [f"Conv2D 3 3 {width} relu"] * 2

    pool = ["MaxPooling2D", "Dropout"]
    dense = ["Flatten", "Dense 256 relu", "Dropout", "Dense 5 softmax"]
    assert made_of("fer2013-cnn") == [*pair(64), *pool, *pair(128), *pair(256), *pool, *dense]
    (wide,) = (layer for layer in NETWORKS["fer2013-cnn"].build(5).layers if getattr(layer, "units", 0) == 256)
    assert float(wide.kernel_regularizer.l2) > 0
    block = "Conv2D 3 3 {0} elu,BatchNormalization,Conv2D 3 3 {0} elu,BatchNormalization,MaxPooling2D,Dropout"
    blocks = ",".join(block.format(width) for width in (32, 64, 128, 256, 256)).split(",")
    hidden = ["Dense 64 elu", "BatchNormalization", "Dropout"] * 2
    assert made_of("little-vgg") == [*blocks, "Flatten", *hidden, "Dense 5 softmax"]
    classic = NETWORKS["fer2013-cnn"]
    optimizer = classic.optimizer(classic.rates(classic.rate, 1000))
    assert (type(optimizer).__name__, float(optimizer.learning_rate)) == ("Adam", pytest.approx(1e-4))
    assert classic.patience


def test_a_network_learns_from_a_tree_without_its_test_faces_and_is_measured_on_them(models, tmp_path):
    faces = tmp_path / "faces"
    shutil.copytree(models / "faces", faces)
    shutil.copy(faces / "test" / "sad" / "0.png", faces / "train" / "sad" / "leak.png")
    tool("train_emotion.py", "--data", faces, "--classes", "happy,sad,surprise", "--arch", "little-vgg",
         "--epochs", 1, "--batch", 16, "--limit", 16, "--seed", 1, "--out", tmp_path / "run")  # fmt: skip
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"model.keras", "card.json", "calibrate.npy", "curves.png", "confusion.png", "settings.json"} <= left
    card = read_card(tmp_path / "run" / "card.json")
    assert card.labels == ("happy", "sad", "surprise")
    assert card.licence == ""

    import train_emotion
    from emotion_faces import VALIDATION, load_faces

    loaded = load_faces(faces, card.labels)
    rows, held = train_emotion.split(loaded)
    assert len(rows) + len(held) == 60, "61 pictures in train/, one of them a test picture too"
    assert not set(loaded.dup_group[rows]) & set(loaded.dup_group[loaded.usage == 2])
    assert not set(loaded.dup_group[rows]) & set(loaded.dup_group[held])
    # What fits a confidence asks for all classes, and holds out the same.
    everything = load_faces(faces)
    kept = {image.tobytes() for image in everything.images[everything.usage == VALIDATION]}
    assert {image.tobytes() for image in loaded.images[held]} <= kept
    assert not {image.tobytes() for image in loaded.images[rows]} & kept
    smaller = load_faces(faces, model_input=ModelInput(24, 24, "gray", (0.0, 1.0)))
    assert (smaller.usage == everything.usage).all()


def test_a_network_goes_on_from_the_mean_of_others_and_learns_what_teachers_answer(models, tmp_path, monkeypatch):
    import keras
    import train_emotion
    from emotion_faces import load_faces
    from emotion_teachers import Teachers, at_most, pairs_mixed, unlabelled
    from former_network import go_on_from

    first, second = train_emotion.NETWORKS["fer2013-cnn"].build(3), train_emotion.NETWORKS["fer2013-cnn"].build(3)
    for model, name in ((first, "first"), (second, "second")):
        model.save(tmp_path / f"{name}.keras")
    teachers = tmp_path / "float.tflite", tmp_path / "int8.tflite"
    for teacher in teachers:
        tool("quantize.py", models / "tiny.keras", "--precision", teacher.stem.replace("float", "float32"),
             "--range", -1, 1, "--min-agreement", 0.5, "--labels", "happy,sad,surprise",
             "--calibrate", models / "pictures.npy", "-o", teacher)  # fmt: skip
    aligned = [np.full((112, 112, 3), level, np.uint8) for level in (20, 200)]
    jpegs = [cv2.imencode(".jpg", face)[1].ravel() for face in aligned]
    np.savez(tmp_path / "more.npz", blob=np.concatenate(jpegs), off=np.cumsum([0, *map(len, jpegs)]))
    tool("train_emotion.py", "--data", models / "faces", "--classes", "happy,sad,surprise", "--arch", "fer2013-cnn",
         "--epochs", 1, "--batch", 16, "--limit", 16, "--rate", 1e-9, "--workers", 2, "--out", tmp_path / "run",
         "--start", tmp_path / "first.keras", tmp_path / "second.keras",
         "--teacher", *teachers, "--faces", tmp_path / "more.npz")  # fmt: skip
    began = keras.models.load_model(tmp_path / "run" / "model.keras", compile=False).get_weights()
    for mean, one, other in zip(began, first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_allclose(mean, (one + other) / 2, atol=1e-6)
    training = read_card(tmp_path / "run" / "card.json").training
    assert training["data"].endswith(
        "answers of float, int8, which were also learnt for faces without labels of more, from the mean of 2 models of "
        "earlier runs"
    )

    names = ("happy", "sad", "surprise")
    both = Teachers(teachers, names)
    images, targets = load_faces(models / "faces", names).images[:2], np.eye(3, dtype=np.float32)[:2]
    images = np.concatenate([images, unlabelled([tmp_path / "more.npz"], both, tmp_path)])
    targets = np.pad(targets, ((0, 2), (0, 0)))
    assert images[2:, 10, 24].tolist() == [20, 200], "dark and bright, gray, as they were packed"
    one, other = (EmotionReader(Model(teacher, "emotion")) for teacher in teachers)

    learnt = both.half_of(targets, images, tmp_path)
    (kept,) = tmp_path.glob("taught-*.npy")
    for image, target, given, labelled in zip(images, targets, learnt, (0.5, 0.5, 0, 0), strict=True):
        views = [cv2.resize(view, (24, 24)) for view in (image, image[:, ::-1])]
        answer = np.mean([reader.read(view) for reader in (one, other) for view in views], 0)
        np.testing.assert_allclose(given, labelled * target + (1 - labelled) * answer, atol=1e-5)
    np.save(kept, np.load(kept)[:, ::-1])
    assert not np.allclose(both.half_of(targets, images, tmp_path), learnt), "computed once"
    both.half_of(targets, images[::-1].copy(), tmp_path)
    assert len(list(tmp_path.glob("taught-*.npy"))) == 2, "of other images"

    dark, bright = images[:2] // 4, images[:2] // 4 + 128
    made = pairs_mixed(np.concatenate([dark, bright[:1]]), np.array([0, 0, 1]), 40, 7)
    assert 10 < sum(face.mean() > 127 for face in made) < 30, "under the light of the first, of labels drawn evenly"

    some = at_most(2, np.array([1, 0, 1, 1, 1]))
    assert 1 in some
    assert len(some) == 3
    with pytest.raises(InputError, match="it tells happy, sad, surprise, and what is learnt is happy, sad"):
        Teachers(teachers, ("happy", "sad"))
    command = ["train_emotion.py", "--data", models / "faces", "--mixed", 4, "--out", tmp_path / "none"]
    monkeypatch.setattr(sys, "argv", [*map(str, command)])
    with pytest.raises(InputError, match="--teacher"):
        train_emotion.main()
    with pytest.raises(InputError, match=r"a \.tflite stands alone"):
        go_on_from([tmp_path / "first.keras", teachers[0]], first, learnt)
    with pytest.raises(InputError, match=r"float\.tflite tells happy, sad, surprise, and what is learnt is sad, happy"):
        train_emotion.check_labels(teachers[:1], ("sad", "happy", "surprise"))
    shutil.copy(ROOT / "models/identity-112.json", tmp_path / "card.json")
    train_emotion.check_labels([tmp_path / "model.keras"], ("sad", "happy"))  # what knows faces tells no emotion


def test_a_training_that_diverged_leaves_no_model_and_one_goes_on_with_its_own_classes(models, tmp_path, monkeypatch):
    import train_emotion

    def train(*more: object) -> None:
        asked = ["--data", models / "faces", "--arch", "fer2013-cnn", "--out", tmp_path, "--limit", 8, "--epochs", 1]
        monkeypatch.setattr(sys, "argv", ["train_emotion.py", *map(str, [*asked, *IN_A_THREAD, *more])])
        train_emotion.main()

    with pytest.raises(InputError, match="diverged"):
        train("--rate", 1e30)
    assert not (tmp_path / "model.keras").exists()
    with pytest.raises(InputError, match=r"holds a run: go on with it \(--resume\), or name another folder"):
        train()
    (tmp_path / "checkpoint.keras").unlink()
    train("--classes", "happy,sad")
    with pytest.raises(InputError, match=r"learns happy, sad, and now it would be sad, happy"):
        train("--classes", "sad,happy", "--resume")


def test_a_network_that_answers_one_thing_ends_the_training():
    import train_emotion

    class Answering:
        def __init__(self, scores):
            self.scores, self.weights = scores, [np.zeros((2, 2)), np.zeros(2)]

        def predict(self, *_, **__):
            return self.scores

        def get_layer(self, _):
            return self

        def get_weights(self):
            return self.weights

        def set_weights(self, weights):
            self.weights = weights

    collapsed = Answering(np.full((20, 2), 0.5))
    train_emotion.shift(collapsed, np.zeros(20), np.array([0, 1] * 10))
    assert np.isfinite(collapsed.weights[1]).all()


@needs_data
@pytest.mark.parametrize(
    ("script", "limit", "leaves"),
    [
        ("train_emotion.py", 256, ["model.keras", "card.json", "calibrate.npy"]),
        ("train_embedding.py", 192, ["model.keras", "card.json", "calibrate.npy"]),
        ("train_detector.py", 16, ["far.keras", "far.json", "far.npy", "near.keras", "near.json", "near.npy"]),
    ],
)
def test_a_trainer_runs_and_resumes(tmp_path, script, limit, leaves):
    output = "--out" if script == "train_emotion.py" else "-o"
    made = ["--mixed", 16] if script == "train_embedding.py" else []
    tool(script, output, tmp_path, "--data", DATA, "--epochs", 1, "--limit", limit, "--bfloat16", *made)
    for name in leaves:
        assert (tmp_path / name).stat().st_size > 0
        if name.endswith(".keras"):
            assert b"bfloat16" not in zipfile.ZipFile(tmp_path / name).read("config.json"), "what is converted is float"
    for name in leaves:
        if name.endswith(".json"):
            card = read_card(tmp_path / name)
            assert card.licence == "LicenseRef-edgefer-models-research-only"
            assert ("16 of them made of two others each" in card.training["data"]) == bool(made)
    if script == "train_detector.py":
        told = tool(script, output, tmp_path, "--resume", "--near", "--epochs", 2).stdout
        assert "epoch 1 of" not in told
        assert "epoch 2 of 2" in told
        assert json.loads((tmp_path / "progress.json").read_text()) == {"epochs_done": 2}
        assert json.loads((tmp_path / "settings.json").read_text())["near"] is True
        is_mean_of_itself(script, limit, tmp_path / "near.keras", tmp_path / "near.json")
        return
    first = json.loads((tmp_path / "history.json").read_text())
    settings = tmp_path / "settings.json"
    settings.write_text(settings.read_text().replace('"epochs": 1', '"epochs": 2'))
    tool(script, output, tmp_path, "--resume")
    assert len(first) == 1
    assert json.loads((tmp_path / "history.json").read_text())[:-1] == first, "one epoch more, after the first"
    if script == "train_embedding.py":
        is_mean_of_itself(script, limit, tmp_path / "model.keras", tmp_path / "card.json")


def is_mean_of_itself(script, limit, model, card):
    """Whether `--epochs 0` writes the mean of the models that --start names."""
    import keras

    mean = model.parent / "mean"
    tool(script, "-o", mean, "--data", DATA, "--epochs", 0, "--limit", limit, "--start", model, model)
    assert f"from {model.name} of an earlier run" in read_card(mean / card.name).training["data"]
    kept, alike = (keras.models.load_model(path, compile=False).get_weights() for path in (model, mean / model.name))
    for one, other in zip(kept, alike, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_the_detectors_first_convolution_takes_eight_pixels_for_four_places():
    import keras
    from train_detector import network

    model, rng = network(64, 96), np.random.default_rng(0)
    (first, *_) = (layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D))
    kernel = rng.normal(size=(3, 3, 3, 8)).astype(np.float32)
    by_place = np.zeros((3, 16, 3, 4, 8), np.float32)  # rows, pixels of two groups, channels, places, filters
    for place in range(4):
        by_place[:, 2 * place : 2 * place + 3, :, place] = kernel
    first.set_weights([by_place.reshape(first.kernel.shape)])
    plain = keras.layers.Conv2D(8, 3, 2, padding="same", use_bias=False)
    plain.build((None, 64, 96, 3))
    plain.set_weights([kernel])
    pictures = rng.uniform(-1, 1, (2, 64, 96, 3)).astype(np.float32)
    given = keras.ops.convert_to_numpy(keras.Model(model.input, first.output)(pictures)).reshape(2, 32, 48, 8)
    np.testing.assert_allclose(given, keras.ops.convert_to_numpy(plain(pictures)), atol=1e-4)


def test_what_ships_is_a_start_for_the_detectors_trainer():
    from former_network import go_on_from
    from train_detector import INPUTS, network

    for name, asked in INPUTS.items():
        pictures = np.random.default_rng(0).uniform(-1, 1, (4, asked.height, asked.width, 3)).astype(np.float32)
        go_on_from([ROOT / f"models/{name}.tflite"], network(asked.height, asked.width), pictures)  # it compares


def test_what_ships_is_a_start_for_the_emotion_trainer():
    import emotion_networks
    from former_network import go_on_from

    pictures = np.random.default_rng(0).uniform(0, 1, (16, 48, 48, 1)).astype(np.float32)
    go_on_from([ROOT / "models/emotion-48.tflite"], emotion_networks.edgefer(7), pictures)  # it compares


def test_the_detectors_loss_is_as_defined():
    from train_detector import BOX_WEIGHT, loss, overlaps

    wanted, given = np.array([[1, 1, 1, 1]], np.float32), np.array([[1, 1, 3, 1]], np.float32)
    (shared,), (apart,) = (np.asarray(part) for part in overlaps(wanted, given))
    assert shared == pytest.approx(0.5), "a face of 2x2, a box of 4x2 around it"
    assert apart == pytest.approx(1 / 20), "the middles are 1 apart, the diagonal is the root of 20"

    truth, said = np.zeros((1, 3, 16), np.float32), np.zeros((1, 3, 15), np.float32)
    truth[0, :, 0] = 1, 0, -1  # a face, none, and a cell that may say anything
    truth[0, 0, 1:5], said[0, 0, 1:5] = 1, (1, 1, 3, 1)
    truth[0, 0, 15], said[0, 0, 5:7] = 0.5, (0.2, 0.02)  # two coordinates off by 0.1 and 0.01 of the face
    said[0, 2, 0] = 9
    # Logits of 0 are shares of a half: right for the face, whose box overlaps by a half, wrong by a half for the other.
    score = 0.25 * np.log(2)
    landmarks = (0.1 - 0.015 + 0.5 * 0.01**2 / 0.03) / 10
    weighed = score + BOX_WEIGHT * (0.5 + 0.05) + 60 * landmarks
    assert float(loss(truth, said, landmarks_weight=60)) == pytest.approx(weighed, rel=1e-4)


def test_a_pack_that_is_none_is_told(tmp_path):
    from data import open_pack

    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 and so on")
    (tmp_path / "empty.npz").touch()
    np.save(tmp_path / "array.npy", np.zeros(3))
    np.savez(tmp_path / "other.npz", blob=np.zeros(3), off=np.zeros(2))
    np.savez_compressed(tmp_path / "torn.npz", blob=np.arange(999), off=np.zeros(2))
    whole = (tmp_path / "torn.npz").read_bytes()
    (tmp_path / "torn.npz").write_bytes(whole[:99] + bytes(99) + whole[198:])
    for name in ("cut.npz", "empty.npz", "torn.npz"):
        with pytest.raises(InputError, match=f"{name}: it can't be read"):
            open_pack(tmp_path / name)
    with pytest.raises(InputError, match=r"array\.npy: no such pack: it lacks blob, off"):
        open_pack(tmp_path / "array.npy")
    with pytest.raises(InputError, match=r"other\.npz: no such pack: it lacks box, img"):
        open_pack(tmp_path / "other.npz", "img", "box")


def test_answers_are_shifted_until_the_rare_class_is_found():
    import keras
    import train_emotion

    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [300, 300, 20])
    values = rng.normal(np.eye(3)[labels] * 1.5, 1.0).astype(np.float32)
    values[:, 2] -= 3  # the rare one is answered too seldom
    image = keras.Input((3,))
    model = keras.Model(image, keras.layers.Dense(3, activation="softmax", name="emotion")(image))
    model.get_layer("emotion").set_weights([np.eye(3), np.zeros(3)])

    def found() -> list[float]:
        right = model.predict(values, verbose=0).argmax(1) == labels
        return [right[labels == label].mean() for label in range(3)]

    before = found()
    train_emotion.shift(model, values, labels)
    assert before[2] < 0.2
    assert min(found()) >= train_emotion.LEAST_FOUND - 0.01

    # Where the rare one looks just like another, that isn't given up for it.
    model.get_layer("emotion").set_weights([np.eye(3), np.zeros(3)])
    values = np.eye(3, dtype=np.float32)[np.where(labels == 2, 0, labels)]
    train_emotion.shift(model, values, labels)
    assert found() == [1, 1, 0]


def test_a_face_is_kept_apart_from_other_people_by_a_margin(tmp_path):
    import train_embedding as trainer
    from data import open_pack, save_pack

    rng = np.random.default_rng(0)
    taught = units(rng.normal(size=(6, trainer.EMBEDDING)).astype(np.float32))
    taught[1] = units(taught[:1] + 0.5 * taught[1:2])[0]  # 7's two are alike; one of 9's three is somebody else
    taught[3], taught[4] = units(np.stack([taught[2] + 0.5 * taught[3], taught[4] - 0.5 * taught[2]]))
    jpeg = cv2.imencode(".jpg", np.zeros((112, 112, 3), np.uint8))[1].ravel()
    blob, off = np.tile(jpeg, 6), np.arange(7) * len(jpeg)
    save_pack(tmp_path / "named.npz", blob=blob, off=off, ids=np.array([7, 7, 9, 9, 9, 3]))
    save_pack(tmp_path / "others.npz", blob=blob, off=off)
    faces = trainer.Faces()
    faces.add(open_pack(tmp_path / "others.npz"), np.arange(4, 6), taught)
    faces.add(open_pack(tmp_path / "named.npz"), np.arange(5), taught)
    assert faces.people == [0, 1, 2, 2, 3, 3, trainer.NOBODY]
    middles = faces.middles()
    np.testing.assert_allclose(middles[2], units(taught[:2].sum(0, keepdims=True))[0], atol=1e-6)
    np.testing.assert_allclose(middles[:2], taught[4:], atol=1e-6)

    given = rng.normal(size=(2, trainer.EMBEDDING)).astype(np.float32)
    validated, known = 1 - (units(given) * taught[[0, 4]]).sum(1)
    lost = trainer.loss_beside(middles)(trainer.targets(taught[[0, 4]], [trainer.NOBODY, 0]), given)
    cosines = units(given)[1] @ middles.T - [trainer.MARGIN, 0, 0, 0]
    share = np.exp(trainer.SCALE * cosines)
    known -= trainer.WEIGHT * np.log(share[0] / share.sum())
    np.testing.assert_allclose(np.asarray(lost), [validated, known], rtol=1e-5)


def as_if_learnt(network, rng):
    """Give a network's normalisation other values than those that it begins with."""
    import keras

    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            of = layer.gamma.shape
            layer.set_weights([rng.uniform(0.5, 1.5, of), *rng.normal(0, 0.2, (2, *of)), rng.uniform(0.5, 1.5, of)])


def test_a_wider_network_begins_with_the_answers_of_the_narrower_one(monkeypatch, tmp_path):
    import embedding_network
    from former_network import go_on_from

    monkeypatch.setattr(embedding_network, "WIDTHS", (8, 8, 16, 16))
    narrow = embedding_network.network()
    rng = np.random.default_rng(0)
    as_if_learnt(narrow, rng)
    narrow.save(tmp_path / "narrow.keras")
    pictures = [cv2.resize(rng.integers(0, 256, (9, 9, 3), np.uint8), (112, 112)) for _ in range(80)]
    np.save(tmp_path / "pictures.npy", pictures)
    assert convert(tmp_path / "narrow.keras", "--task", "embedding", "--range", -1, 1,
                   "--calibrate", tmp_path / "pictures.npy", "-o", tmp_path / "narrow.tflite") == 0  # fmt: skip
    faces = (np.stack(pictures) / 127.5 - 1).astype(np.float32)
    answers = narrow.predict(faces, verbose=0)

    monkeypatch.setattr(embedding_network, "WIDTHS", (8, 16, 16, 24))
    wide = embedding_network.network()
    go_on_from([tmp_path / "narrow.keras"], wide, faces)
    np.testing.assert_allclose(wide.predict(faces, verbose=0), answers, atol=1e-5)

    shipped = embedding_network.network()
    go_on_from([tmp_path / "narrow.tflite"], shipped, faces)
    assert np.corrcoef(shipped.predict(faces, verbose=0).ravel(), answers.ravel())[0, 1] > 0.98
    # What was folded is apart again, so that training begins with the same answers.
    trained = np.asarray(shipped(faces[:64], training=True))
    assert np.corrcoef(trained.ravel(), answers[:64].ravel())[0, 1] > 0.95

    monkeypatch.setattr(embedding_network, "WIDTHS", (8, 8, 8, 16))
    (tmp_path / "cut.tflite").write_bytes((tmp_path / "narrow.tflite").read_bytes()[:2000])
    (tmp_path / "cut.keras").write_bytes((tmp_path / "narrow.keras").read_bytes()[:2000])
    for name, told in (
        ("narrow.tflite", "is another network than the one to train"),
        ("narrow.keras", "is another network than the one to train"),
        ("cut.tflite", "can't be read"),
        ("cut.keras", "can't be read"),
        ("none.keras", "isn't there"),
    ):
        with pytest.raises(InputError, match=rf"^--start: .*{name}:? {told}"):
            go_on_from([tmp_path / name], embedding_network.network(), faces)


def test_what_tells_emotions_begins_with_what_knows_faces(monkeypatch, tmp_path):
    import embedding_network
    import emotion_networks
    import keras
    import train_detector
    from former_network import go_on_from

    rng = np.random.default_rng(0)
    images = np.stack([cv2.resize(rng.random((6, 6), np.float32), (48, 48)) for _ in range(4)])
    enlarged = np.stack([cv2.resize(image, (96, 96)) for image in images]) * 2 - 1
    images, enlarged = images[..., None], np.repeat(enlarged[..., None], 3, -1)
    monkeypatch.setattr(embedding_network, "WIDTHS", (8, 8, 16, 24))
    monkeypatch.setattr(emotion_networks, "NARROW", ((), (4,), (4,), ()))
    teller = emotion_networks.faces(7)
    for additions in ((0, 0, 1, 0), (0, 0, 0, 0)):
        monkeypatch.setattr(embedding_network, "ADDITIONS", additions)
        knows = embedding_network.network()
        as_if_learnt(knows, rng)
        knows.save(tmp_path / "identity.keras")
        go_on_from([tmp_path / "identity.keras"], teller, images)
        first = keras.Sequential([keras.Input((96, 96, 3)), *knows.layers[1:4]]).predict(enlarged, verbose=0)
        told = keras.Model(teller.input, teller.layers[3].output).predict(images, verbose=0)
        np.testing.assert_allclose(told[:, 1:-1, 1:-1], first[:, 1:-1, 1:-1], atol=1e-4)
        weights, last = knows.get_weights(), 5 * (6 + sum(additions))  # where the last stage begins: five a layer
        others = [*weights[5:25], *weights[last : last + 5]]
        for taken, given in zip(teller.get_weights()[5:30], others, strict=True):
            np.testing.assert_array_equal(taken, given)
    monkeypatch.setattr(embedding_network, "WIDTHS", (8, 8, 16, 32))
    embedding_network.network().save(tmp_path / "wider.keras")
    for other, pictures in ((teller, images), (train_detector.network(64, 64), np.zeros((2, 64, 64, 3), np.float32))):
        with pytest.raises(InputError, match="another network than the one to train"):
            go_on_from([tmp_path / "wider.keras"], other, pictures)


def test_convolutions_by_way_of_fewer_channels_begin_as_the_whole_one(monkeypatch, tmp_path):
    import emotion_networks
    import keras
    from former_network import MUONS_SIZE, go_on_from

    rng = np.random.default_rng(0)
    images = np.stack([cv2.resize(rng.random((6, 6), np.float32), (48, 48)) for _ in range(16)])[..., None]

    def layers_of(network, kind):
        return [layer for layer in network.layers if isinstance(layer, kind)]

    def saved(name, channels):
        """A whole network whose further convolutions write what varies along so many channels."""
        whole = emotion_networks.faces(7)
        as_if_learnt(whole, rng)
        for number in (2, 4, 5, 6):
            convolution = layers_of(whole, keras.layers.Conv2D)[number]
            (kernel,) = convolution.get_weights()
            convolution.set_weights([kernel[..., :channels] @ rng.normal(0, 0.2, (channels, kernel.shape[-1]))])
        whole.save(tmp_path / name)
        return whole

    one, other, wide = saved("one.keras", 16), saved("other.keras", 16), saved("wide.keras", 60)
    parted = emotion_networks.edgefer(7)
    go_on_from([tmp_path / "one.keras", tmp_path / "other.keras"], parted, images)
    runs = zip(one.get_weights(), other.get_weights(), strict=True)
    one.set_weights([np.mean(weights, 0) for weights in runs])  # 32 channels hold what both write
    np.testing.assert_allclose(parted.predict(images, verbose=0), one.predict(images, verbose=0), atol=1e-4)
    first, second = layers_of(parted, keras.layers.BatchNormalization)[2:4]
    written = keras.Model(parted.input, [first.input, second.input]).predict(images, verbose=0)
    for norm, values in zip((first, second), written, strict=True):
        np.testing.assert_allclose(norm(values, training=True), norm(values), atol=1e-3)  # it trains as it answers

    go_on_from([tmp_path / "wide.keras"], parted, images)
    for number in (2, 3, 5, 6):
        (kernel,) = layers_of(parted, keras.layers.Conv2D)[number].get_weights()
        assert np.sqrt(np.square(kernel).mean()) == pytest.approx(MUONS_SIZE, rel=1e-3), "as large as in training"
    outputs = [layers_of(network, keras.layers.BatchNormalization)[number].output
               for network, number in ((wide, 2), (parted, 3))]  # fmt: skip
    whole, by_way = (keras.Model(network.input, output).predict(images, verbose=0).reshape(-1, 64).astype(np.float64)
                     for network, output in zip((wide, parted), outputs, strict=True))  # fmt: skip
    np.testing.assert_allclose(by_way.mean(0), whole.mean(0), atol=1e-3)
    lost, least = np.square(by_way - whole).sum(1).mean(), np.linalg.eigvalsh(np.cov(whole.T))[:32].sum()
    assert lost > 0.01
    assert lost == pytest.approx(least, rel=0.01), "no 32 directions hold more"

    monkeypatch.setattr(emotion_networks, "NARROW", ((), (60,), (), ()))
    emotion_networks.faces(7).save(tmp_path / "one_more.keras")
    go_on_from([tmp_path / "one_more.keras"], emotion_networks.edgefer(7), images)  # one alone is parted
    monkeypatch.undo()
    for narrow in (((), (64,), (48, 48, 64), ()), ((), (32,), (48,), ()), ((), (32,), (48, 48, 64, 64), ())):
        with monkeypatch.context() as changed:
            changed.setattr(emotion_networks, "NARROW", narrow)
            model = emotion_networks.edgefer(7)
        with pytest.raises(InputError, match="another network than the one to train"):
            go_on_from([tmp_path / "one.keras"], model, images)
    stranger = keras.Sequential([keras.Input((48, 48, 3)), keras.layers.Conv2D(32, 3, 2, use_bias=False),
                                 keras.layers.BatchNormalization(scale=False), keras.layers.Flatten(),
                                 keras.layers.Dense(7)])  # fmt: skip
    stranger.save(tmp_path / "stranger.keras")
    with pytest.raises(InputError, match="another network than the one to train"):
        go_on_from([tmp_path / "stranger.keras"], parted, images)
    emotion_networks.edgefer(7).save(tmp_path / "parted.keras")
    with pytest.raises(InputError, match=r"parted\.keras is another network than .*one\.keras: these have no mean"):
        go_on_from([tmp_path / "one.keras", tmp_path / "parted.keras"], parted, images)


def test_a_deeper_network_begins_with_the_answers_of_the_shallower_one(monkeypatch, tmp_path):
    import embedding_network
    import emotion_networks
    from former_network import go_on_from

    def network(additions):
        monkeypatch.setattr(embedding_network, "ADDITIONS", additions)
        return embedding_network.network()

    faces = np.random.default_rng(0).uniform(-1, 1, (2, 112, 112, 3)).astype(np.float32)
    monkeypatch.setattr(embedding_network, "WIDTHS", (8, 8, 8, 8))
    deep, shallow = network((0, 1, 0, 1)), network((0, 0, 0, 0))
    network((0, 0, 1, 0)).save(tmp_path / "other.keras")
    with pytest.raises(InputError, match="another network than the one to train"):
        go_on_from([tmp_path / "other.keras"], deep, faces)
    shallow.save(tmp_path / "shallow.keras")
    go_on_from([tmp_path / "shallow.keras"], deep, faces)
    np.testing.assert_allclose(deep.predict(faces, verbose=0), shallow.predict(faces, verbose=0), atol=1e-5)

    emotion_networks.edgefer(7).save(tmp_path / "seven.keras")
    with pytest.raises(InputError, match="another network than the one to train"):
        go_on_from([tmp_path / "seven.keras"], emotion_networks.edgefer(8), np.zeros((2, 48, 48, 1), np.float32))


@needs_data
def test_yunet_is_decoded_as_opencv_does():
    from detector_scenes import open_photos
    from peers import YUNET

    photos = open_photos(DATA / "det_val.npz")
    several = np.flatnonzero(np.bincount(photos.fields["img"]) >= 3)
    picture, _ = letterbox(photos.picture(int(several[0])), 640, 640)
    network = cv2.dnn.readNet(str(DATA / YUNET))
    network.setInput(picture.transpose(2, 0, 1)[None].astype(np.float32))
    given = network.forward([f"{kind}_{stride}" for kind in ("cls", "obj", "bbox", "kps") for stride in (8, 16, 32)])
    scores, boxes, landmarks = decode_yunet(tuple(output[0] for output in given), grid_cells(640, 640), 0.1)
    kept = suppress(scores, boxes, MAX_IOU)
    _, rows = cv2.FaceDetectorYN.create(str(DATA / YUNET), "", (640, 640), 0.1, MAX_IOU).detect(picture)
    assert len(rows) >= 2
    np.testing.assert_allclose(scores[kept], rows[:, 14], atol=1e-4)
    np.testing.assert_allclose(boxes[kept], np.hstack([rows[:, :2], rows[:, :2] + rows[:, 2:4]]), atol=0.05)
    np.testing.assert_allclose(landmarks[kept].reshape(-1, 10), rows[:, 4:14], atol=0.05)


@needs_data
def test_scrfd_places_a_face_where_ours_does():
    from data import open_pack
    from peers import SCRFD, Scrfd

    lfw = open_pack(DATA / "lfw_pairs_112.npz")
    face = cv2.copyMakeBorder(lfw.picture(0), 64, 64, 64, 64, cv2.BORDER_REPLICATE)
    theirs = Scrfd(DATA / SCRFD, 256, 0.5)(face)[0]
    ours = Detector(Model(find_model("far"), "detector"))(face)[0]
    assert theirs.box.iou(ours.box) > 0.7
    assert np.abs(np.subtract(theirs.landmarks, ours.landmarks)).max() < 0.08 * ours.box.side


@needs_data
def test_pictures_of_one_sure_face_become_a_pack(tmp_path):
    from data import open_pack
    from detector_scenes import open_photos

    photos, lfw = tmp_path / "photos", open_pack(DATA / "lfw_pairs_112.npz")
    photos.mkdir()
    for number in range(3):
        face = cv2.copyMakeBorder(lfw.picture(number), 64, 64, 64, 64, cv2.BORDER_REPLICATE)
        cv2.imwrite(str(photos / f"{number}.png"), face if number else np.hstack([face, face]))
    (photos / "cut.jpg").write_bytes(b"\xff\xd8")
    told = tool("label_faces.py", photos, "-o", tmp_path / "large.npz", "--data", DATA.resolve()).stdout
    assert told.endswith("large.npz: 2 of 4 pictures (1 can't be read)\n"), "on the other there are two faces"
    pack = open_photos(tmp_path / "large.npz")
    assert pack.fields["img"].tolist() == [0, 1]
    for box, five in zip(pack.fields["box"], pack.fields["kps"], strict=True):
        assert 60 < np.sqrt((box[2:] - box[:2]).prod()) < 130
        assert ((five > box[:2]) & (five < box[2:])).all()


@needs_data
def test_faces_of_a_folder_are_one_persons(tmp_path):
    from data import open_pack

    lfw = open_pack(DATA / "lfw_pairs_112.npz")
    for number, name in enumerate(["ann/1.png", "ann/2.png", "bob/1.png", "bob/none.png"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        face = cv2.copyMakeBorder(lfw.picture(number), 64, 64, 64, 64, cv2.BORDER_REPLICATE)
        cv2.imwrite(str(tmp_path / name), face if number < 3 else np.zeros_like(face))
    told = tool("align_faces.py", tmp_path, "--people", "-o", tmp_path / "people.npz", "--data", DATA.resolve()).stdout
    assert told.endswith("people.npz: 3 faces of 4 pictures\n")
    assert open_pack(tmp_path / "people.npz").fields["ids"].tolist() == [0, 0, 1]
    tool("align_faces.py", tmp_path, "-o", tmp_path / "faces.npz", "--data", DATA.resolve())
    assert "ids" not in open_pack(tmp_path / "faces.npz").fields, "then whose each is isn't known"


@needs_data
def test_who_teaches_tells_people_apart():
    from data import open_pack
    from peers import TEACHER, MobileFaceNet

    lfw, teacher = open_pack(DATA / "lfw_pairs_112.npz"), MobileFaceNet(DATA / TEACHER)
    pairs, same = lfw.fields["pairs"], lfw.fields["same"].astype(bool)
    alike = []
    for rows in (np.flatnonzero(same)[:20], np.flatnonzero(~same)[:20]):
        one, other = (units(np.stack([teacher(lfw.picture(int(i))) for i in pairs[rows, side]])) for side in (0, 1))
        alike.append((one * other).sum(1))
    assert alike[0].min() > 0.5, "0.55; with red for blue 0.48"
    assert alike[1].max() < 0.3


@needs_data
def test_our_detectors_stand_beside_others_in_a_table(tmp_path):
    from data import open_pack, save_pack

    (tmp_path / "peers").symlink_to((DATA / "peers").resolve())
    lfw = open_pack(DATA / "lfw_pairs_112.npz")
    faces = [cv2.copyMakeBorder(lfw.picture(i), 64, 64, 64, 64, cv2.BORDER_REPLICATE) for i in range(2)]
    jpegs = [cv2.imencode(".jpg", face)[1].ravel() for face in faces]
    kept = {"blob": np.concatenate(jpegs), "off": np.cumsum([0, *map(len, jpegs)])}
    found = [Detector(Model(find_model("far"), "detector"))(face)[0] for face in faces]
    boxes = np.array([(f.box.x, f.box.y, f.box.x + f.box.width, f.box.y + f.box.height) for f in found], np.float32)
    points = np.array([f.landmarks for f in found], np.float32)
    save_pack(tmp_path / "faceboxes_dev.npz", **kept, boxes=boxes, box_image=np.arange(2))
    save_pack(tmp_path / "det_val.npz", **kept, box=boxes, kps=points, img=np.arange(2), ignore=np.zeros(2, np.uint8))
    rows = tool("compare_detectors.py", "far", "--data", tmp_path).stdout.splitlines()
    header = [cell.strip() for cell in rows[0].strip("|").split("|")]
    cells = {(row.split("|")[1].strip(), row.split("|")[2].strip()): row.strip("|").split("|") for row in rows[2:-2]}
    assert {name for name, _ in cells} == {"`far`", "SCRFD-2.5g", "SCRFD-500m", "YuNet"}
    assert len(cells) == 1 + 3 * 4
    for row in cells.values():
        told = dict(zip(header, map(str.strip, row), strict=True))
        assert told["AP50 >= 32 px"] == "1.000"
        assert float(told["points"].rstrip("%")) < 12
    ours = dict(zip(header, map(str.strip, cells["`far`", "416x320"]), strict=True))
    assert ours["time"] == "1.00"
    assert float(ours["points"].rstrip("%")) < 1, "of its own landmarks, but for the JPEG"


def test_a_damaged_peer_is_told(tmp_path):
    from peers import Scrfd, YuNet

    (tmp_path / "yunet.onnx").write_bytes(b"\x08\x07cut")
    with pytest.raises(InputError, match=r"yunet\.onnx: it can't be loaded"):
        YuNet(tmp_path / "yunet.onnx", 320, 0.5)
    (tmp_path / "scrfd.param").write_text("version of a pointer, not a network\n")
    with pytest.raises(InputError, match=r"scrfd\.bin isn't there"):
        Scrfd(tmp_path / "scrfd", 320, 0.5)
    (tmp_path / "scrfd.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"scrfd\.param: it can't be loaded"):
        Scrfd(tmp_path / "scrfd", 320, 0.5)


def test_an_output_that_finds_next_to_nothing_doesnt_spoil_a_detectors_agreement():
    from agreement import compare

    original = np.full((5, 40, 1), 1e-3, np.float32)
    original[0, 7] = 0.9
    in_int8 = np.where(original > 0.5, original, 0).astype(np.float32)
    assert compare("detector", [original], [in_int8]).agreement > 0.99
    assert compare("detector", [original], [np.roll(in_int8, 1, axis=1)]).agreement < 0.1


def test_a_run_without_readable_settings_isnt_resumed(tmp_path):
    from training import kept_settings

    with pytest.raises(InputError, match=r"nothing to resume: .*settings\.json"):
        kept_settings(tmp_path, "out")
    (tmp_path / "settings.json").write_text('{"out": 4')
    with pytest.raises(InputError, match=r"settings\.json: it can't be read: .* without --resume"):
        kept_settings(tmp_path, "out")
    for another in ('{"output": 4}', "[]"):
        (tmp_path / "settings.json").write_text(another)
        with pytest.raises(InputError, match=r"settings\.json: another trainer's"):
            kept_settings(tmp_path, "out")
    (tmp_path / "settings.json").write_text('{"out": 4}')
    assert kept_settings(tmp_path, "out") == {"out": 4}


def test_a_run_is_of_no_commit_where_git_cant_tell(tmp_path, monkeypatch):
    from training import commit

    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit() == ""


def test_batch_normalisation_is_taken_anew_from_all_images_alike():
    import keras
    import train_emotion

    image = keras.Input((48, 48, 1))
    model = keras.Model(image, keras.layers.BatchNormalization()(image))
    images = np.full((129, 48, 48), 51, np.uint8)
    images[128] = 180  # by itself in the last batch
    train_emotion.settle(model, images)
    assert float(model.layers[1].moving_mean[0]) == pytest.approx(images.mean() / 255, abs=1e-4)
