#!/usr/bin/env python3
"""Trains the two versions of the example model `digits` and writes them as ONNX.

    usage: train.py [FOLDER]         (default: the folder of this script; about 15 s on one core)

Version 1 is a logistic regression, version 2 a small convolutional net. Both take `image` f32 [N, 1, 8, 8], grey
values from 0 to 1, and give `probs` f32 [N, 10], so that one can replace the other under traffic. The images that
neither has seen are written beside them, and the accuracy on these is computed from the ONNX files as written, by
ONNX's reference evaluator; the script fails where it is not the published one.

The net is trained by hand in numpy, forward and backward: 24 000 parameters do not justify a framework of a gigabyte.
It trains in f64 although the files hold f32: the differences between two machines' BLAS stay far below what f32
shows, so a fixed seed gives nearly the same weights everywhere. Images are [N, height, width, channels] inside, which
makes a convolution one matrix product; ONNX's [N, channels, height, width] appears only at the edges.
"""

import os
import sys
from pathlib import Path

# More threads would add up in another order; the variables count only if numpy is not loaded yet.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

SPLIT_SEED = 20240
# The seeds 0 to 11 get 441 to 446 of the held-out images right, the middle ones 443 and 444. This one is fixed
# because it gives the 98.7 % that is published, so that accuracy is an example's figure, not an estimate.
TRAIN_SEED = 2
HELD_OUT = 450
CLASSES = 10

# The oldest formats that have every operator used, so that old runtimes read the files too.
OPSET = 17
IR_VERSION = 8

# Held-out images classified right: 92.9 % and 98.7 %. A machine that rounds otherwise may move an image on the border.
RIGHT_PUBLISHED = {"v1": 418, "v2": 444}
RIGHT_SLACK = 1

EPOCHS = 30
BATCH = 64
LEARNING_RATE_MAX = 4e-3
WEIGHT_DECAY = 1e-3


def load_split():
    """The 1797 images as [N, 1, 8, 8] f32 in 0..1 and their labels, split once and for all by class and seed."""
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    return train_test_split(
        images, labels.astype(np.int64), test_size=HELD_OUT, random_state=SPLIT_SEED, stratify=labels
    )


# --- Layers: `forward` keeps what `backward` needs; `backward` turns d loss / d output into d loss / d input. ---


class Parameter:
    """A trained array with its gradient and AdamW's two moments."""

    def __init__(self, value):
        self.value = value
        self.gradient = np.zeros_like(value)
        self.mean = np.zeros_like(value)
        self.square = np.zeros_like(value)


def uniform(rng, shape, fan_in):
    bound = 1 / np.sqrt(fan_in)
    return Parameter(rng.uniform(-bound, bound, shape))


def patches(x):
    """[N, H, W, C] -> [N*H*W, 9*C]: the zero-padded 3x3 neighbourhood of each pixel."""
    n, height, width, channels = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    return windows.transpose(0, 1, 2, 4, 5, 3).reshape(n * height * width, 9 * channels)


class Conv:
    """3x3, stride 1, same size, without bias: the normalisation that follows has one. Weights [3, 3, in, out]."""

    def __init__(self, rng, channels_in, channels_out):
        self.weight = uniform(rng, (3, 3, channels_in, channels_out), 9 * channels_in)
        self.parameters = [self.weight]

    def forward(self, x):
        self.patches = patches(x)
        channels_out = self.weight.value.shape[3]
        return (self.patches @ self.weight.value.reshape(-1, channels_out)).reshape(*x.shape[:3], channels_out)

    def backward(self, d):
        channels_in, channels_out = self.weight.value.shape[2:]
        self.weight.gradient = (self.patches.T @ d.reshape(-1, channels_out)).reshape(self.weight.value.shape)
        # The gradient of a convolution is the convolution with the kernel turned by 180 degrees.
        turned = self.weight.value[::-1, ::-1].transpose(0, 1, 3, 2).reshape(-1, channels_in)
        return (patches(d) @ turned).reshape(*d.shape[:3], channels_in)


class BatchNorm:
    """Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167; inference folds the running figures into a conv."""

    EPSILON = 1e-5
    MOMENTUM = 0.1

    def __init__(self, channels):
        self.scale = Parameter(np.ones(channels))
        self.shift = Parameter(np.zeros(channels))
        self.parameters = [self.scale, self.shift]
        self.running_mean = np.zeros(channels)
        self.running_variance = np.ones(channels)

    def forward(self, x):
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        count = x.size // x.shape[3]
        self.running_mean += self.MOMENTUM * (mean - self.running_mean)
        self.running_variance += self.MOMENTUM * (variance * count / (count - 1) - self.running_variance)
        self.deviation = np.sqrt(variance + self.EPSILON)
        self.normal = (x - mean) / self.deviation
        return self.normal * self.scale.value + self.shift.value

    def backward(self, d):
        self.scale.gradient = (d * self.normal).sum((0, 1, 2))
        self.shift.gradient = d.sum((0, 1, 2))
        d = d * self.scale.value
        centred = d - d.mean((0, 1, 2)) - self.normal * (d * self.normal).mean((0, 1, 2))
        return centred / self.deviation


class Relu:
    parameters = ()

    def forward(self, x):
        self.positive = x > 0
        return x * self.positive

    def backward(self, d):
        return d * self.positive


class MaxPool:
    """2x2, stride 2."""

    parameters = ()

    def forward(self, x):
        n, height, width, channels = x.shape
        cells = x.reshape(n, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 5, 2, 4)
        cells = cells.reshape(n, height // 2, width // 2, channels, 4)
        self.winner = cells.argmax(4)[..., None]
        return np.take_along_axis(cells, self.winner, 4)[..., 0]

    def backward(self, d):
        n, height, width, channels = d.shape
        cells = np.zeros((*d.shape, 4))
        np.put_along_axis(cells, self.winner, d[..., None], 4)
        cells = cells.reshape(n, height, width, channels, 2, 2).transpose(0, 1, 4, 2, 5, 3)
        return cells.reshape(n, 2 * height, 2 * width, channels)


class GlobalAverage:
    """[N, H, W, C] -> [N, C]."""

    parameters = ()

    def forward(self, x):
        self.shape = x.shape
        return x.mean((1, 2))

    def backward(self, d):
        _, height, width, _ = self.shape
        return np.broadcast_to(d[:, None, None, :] / (height * width), self.shape)


class Linear:
    """Weights [in, out]."""

    def __init__(self, rng, features_in, features_out):
        self.weight = uniform(rng, (features_in, features_out), features_in)
        self.bias = uniform(rng, (features_out,), features_in)
        self.parameters = [self.weight, self.bias]

    def forward(self, x):
        self.input = x
        return x @ self.weight.value + self.bias.value

    def backward(self, d):
        self.weight.gradient = self.input.T @ d
        self.bias.gradient = d.sum(0)
        return d @ self.weight.value.T


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


# --- Training ---


def conv_net(rng):
    return [
        *(Conv(rng, 1, 16), BatchNorm(16), Relu()),
        *(Conv(rng, 16, 32), BatchNorm(32), Relu(), MaxPool()),
        *(Conv(rng, 32, 64), BatchNorm(64), Relu(), GlobalAverage()),
        Linear(rng, 64, CLASSES),
    ]


def one_cycle(progress):
    """Learning rate and first momentum at `progress` 0..1: up for 30 %, then down, along half cosines.

    Smith and Topin 2017, https://arxiv.org/abs/1708.07120.
    """
    warm_up = 0.3
    if progress < warm_up:
        height, floor = (1 - np.cos(np.pi * progress / warm_up)) / 2, 1 / 25
    else:
        height, floor = (1 + np.cos(np.pi * (progress - warm_up) / (1 - warm_up))) / 2, 1e-5
    return LEARNING_RATE_MAX * (floor + (1 - floor) * height), 0.95 - 0.10 * height


def adamw(parameters, step, rate, momentum):
    """One step of Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101, algorithm 2; `step` counts from 1."""
    square_momentum, epsilon = 0.999, 1e-8
    for p in parameters:
        p.value *= 1 - rate * WEIGHT_DECAY
        p.mean += (1 - momentum) * (p.gradient - p.mean)
        p.square += (1 - square_momentum) * (p.gradient**2 - p.square)
        mean = p.mean / (1 - momentum**step)
        square = p.square / (1 - square_momentum**step)
        p.value -= rate * mean / (np.sqrt(square) + epsilon)


def train_conv_net(images, labels):
    """Every other epoch moves each batch by up to one pixel, so that the net does not learn positions by heart."""
    rng = np.random.default_rng(TRAIN_SEED)
    net = conv_net(rng)
    parameters = [p for layer in net for p in layer.parameters]
    images = images.astype(np.float64).transpose(0, 2, 3, 1)
    targets = np.eye(CLASSES)[labels]
    steps = EPOCHS * -(-len(images) // BATCH)
    step = 0
    for epoch in range(EPOCHS):
        order = rng.permutation(len(images))
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            shift = rng.integers(-1, 2, 2) if epoch % 2 else (0, 0)
            x = np.roll(images[rows], shift, (1, 2))
            for layer in net:
                x = layer.forward(x)
            # Cross entropy over softmax: the gradient by the logits is what was said less what is true.
            d = (softmax(x) - targets[rows]) / len(rows)
            for layer in reversed(net):
                d = layer.backward(d)
            rate, momentum = one_cycle(step / (steps - 1))
            step += 1
            adamw(parameters, step, rate, momentum)
    return net


# --- Export ---


def save(path, nodes, weights):
    """Writes a checked model with the signature that both versions share."""
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 8, 8])],
        [helper.make_tensor_value_info("probs", TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(np.ascontiguousarray(v, np.float32), name) for name, v in weights.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="train.py"
    )
    onnx.checker.check_model(model, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def save_logistic_regression(path, images, labels):
    # This much regularisation is deliberate: version 1 shall be good, and visibly worse than version 2.
    pixels = images.reshape(len(images), -1).astype(np.float64)
    fitted = LogisticRegression(C=0.02, max_iter=2000).fit(pixels, labels)
    node = helper.make_node
    save(
        path,
        [
            node("Flatten", ["image"], ["pixels"], axis=1),
            node("Gemm", ["pixels", "weight", "bias"], ["logits"]),
            node("Softmax", ["logits"], ["probs"], axis=-1),
        ],
        {"weight": fitted.coef_.T, "bias": fitted.intercept_},
    )


def folded(conv, norm):
    """Weight [out, in, 3, 3] and bias of the one convolution that does what `conv` and then `norm` do."""
    scale = norm.scale.value / np.sqrt(norm.running_variance + norm.EPSILON)
    return (conv.weight.value * scale).transpose(3, 2, 0, 1), norm.shift.value - norm.running_mean * scale


def save_conv_net(path, net):
    nodes, weights, current = [], {}, "image"

    def add(operator, name, *constants, **attributes):
        nonlocal current
        nodes.append(helper.make_node(operator, [current, *constants], [name], **attributes))
        current = name

    convs = [layer for layer in net if isinstance(layer, Conv)]
    norms = [layer for layer in net if isinstance(layer, BatchNorm)]
    for index, (conv, norm) in enumerate(zip(convs, norms), start=1):
        weight, bias = f"conv{index}.weight", f"conv{index}.bias"
        weights[weight], weights[bias] = folded(conv, norm)
        add("Conv", f"conv{index}", weight, bias, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        add("Relu", f"relu{index}")
        if index == 2:
            add("MaxPool", "pool", kernel_shape=[2, 2], strides=[2, 2])
    add("GlobalAveragePool", "average")
    add("Flatten", "features", axis=1)
    weights["dense.weight"], weights["dense.bias"] = net[-1].weight.value, net[-1].bias.value
    add("Gemm", "logits", "dense.weight", "dense.bias")
    add("Softmax", "probs", axis=-1)
    save(path, nodes, weights)


def verify(folder, version, images, labels):
    """Prints the accuracy of a file as written; false where it is not the published one."""
    path = folder / version / "model.onnx"
    (probs,) = ReferenceEvaluator(str(path)).run(None, {"image": images})
    right = int((probs.argmax(1) == labels).sum())
    published = RIGHT_PUBLISHED[version]
    print(f"{version}: {right} of {len(labels)} right, {right / len(labels):.1%}; published: {published}")
    return abs(right - published) <= RIGHT_SLACK


def main():
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent
    train_images, heldout_images, train_labels, heldout_labels = load_split()
    save_logistic_regression(folder / "v1" / "model.onnx", train_images, train_labels)
    save_conv_net(folder / "v2" / "model.onnx", train_conv_net(train_images, train_labels))
    np.save(folder / "heldout_images.npy", heldout_images)
    np.save(folder / "heldout_labels.npy", heldout_labels)
    good = [verify(folder, version, heldout_images, heldout_labels) for version in RIGHT_PUBLISHED]
    if not all(good):
        sys.exit("the accuracy is not the published one")


if __name__ == "__main__":
    main()
