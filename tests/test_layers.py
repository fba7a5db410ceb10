import keras
import numpy as np
import pytest
import tensorflow as tf

from luna_cls.learning.layers import FusedBatchNormalization

pytestmark = pytest.mark.usefixtures("float32_policy")

SHAPES = [(4, 5, 6, 7, 3), (8, 9, 3)]
SHAPE_IDS = ["5-D", "3-D"]
BFLOAT16_STEP = 2.0**-8  # bfloat16 keeps 8 significant bits


def _pair(shape, **options):
    """Keras' layer and the fused one, with the same weights, all of them away from 0 and 1."""
    layers = [keras.layers.BatchNormalization(**options), FusedBatchNormalization(**options)]
    rng = np.random.default_rng(7)
    for layer in layers:
        layer.build(shape)
    weights = [rng.uniform(0.5, 2.0, weight.shape) for weight in layers[0].get_weights()]
    for layer in layers:
        layer.set_weights(weights)
    return layers


def _inputs(shape, step=0):
    """Values of mean 3 and standard deviation 2, other ones at each step."""
    return np.random.default_rng([9, step]).normal(3.0, 2.0, shape).astype("float32")


def _gradients(layer, inputs):
    """Of sum(outputs * known weights), with respect to the inputs, gamma and beta."""
    upstream = np.random.default_rng(11).normal(size=inputs.shape).astype("float32")
    inputs = tf.constant(inputs)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        value = tf.reduce_sum(layer(inputs, training=True) * upstream)
    return tape.gradient(value, [inputs, layer.gamma.value, layer.beta.value])


def _moving(layer):
    return np.stack([layer.moving_mean.numpy(), layer.moving_variance.numpy()])


def test_the_kernel_gives_zero_mean_and_unit_variance():
    """Values 1, 3, 5, 7 (mean 4, variance 5) become -3, -1, 1, 3 over the root of 5."""
    layer = FusedBatchNormalization(epsilon=0.0)

    actual = layer(np.array([1, 3, 5, 7], "float32").reshape(1, 2, 2, 1, 1), training=True)

    np.testing.assert_allclose(np.ravel(actual), np.array([-3, -1, 1, 3]) / np.sqrt(5), rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
def test_training_outputs_are_those_of_keras(shape):
    """In training, outputs agree with Keras' to 5 digits."""
    plain, fused = _pair(shape)

    actual = fused(_inputs(shape), training=True)

    np.testing.assert_allclose(actual, plain(_inputs(shape), training=True), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
def test_gradients_are_those_of_keras(shape):
    """Gradients of input, gamma and beta agree with Keras' to 1/100,000 of the largest of each."""
    plain, fused = _pair(shape)

    expected = _gradients(plain, _inputs(shape))
    actual = _gradients(fused, _inputs(shape))

    for got, wanted in zip(actual, expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
def test_moving_statistics_are_those_of_keras(shape):
    """After five training steps, moving mean and variance agree with Keras'."""
    plain, fused = _pair(shape, momentum=0.9)

    for step in range(5):
        plain(_inputs(shape, step), training=True)
        fused(_inputs(shape, step), training=True)

    np.testing.assert_allclose(_moving(fused), _moving(plain), rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
def test_inference_outputs_are_those_of_keras(shape):
    """In inference the moving statistics normalise, and stay as they are."""
    plain, fused = _pair(shape)
    before = _moving(fused)

    actual = fused(_inputs(shape), training=False)

    np.testing.assert_allclose(actual, plain(_inputs(shape), training=False), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(_moving(fused), before)


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_bfloat16_is_within_one_rounding_of_float32(training):
    """Under mixed_bfloat16, outputs are bfloat16 and as near to float32's as that format allows."""
    plain, _ = _pair(SHAPES[0])
    _, fused = _pair(SHAPES[0], dtype="mixed_bfloat16")
    inputs = keras.ops.cast(_inputs(SHAPES[0]), "bfloat16")

    actual = fused(inputs, training=training)

    expected = plain(keras.ops.cast(inputs, "float32"), training=training)
    assert actual.dtype == tf.bfloat16
    np.testing.assert_allclose(
        keras.ops.cast(actual, "float32"), expected, rtol=BFLOAT16_STEP, atol=BFLOAT16_STEP
    )
    np.testing.assert_allclose(_moving(fused), _moving(plain), rtol=1e-4)


def test_a_frozen_layer_takes_its_moving_statistics():
    """With trainable=False, training=True normalises as in inference and moves nothing."""
    plain, fused = _pair(SHAPES[0], trainable=False)
    before = _moving(fused)

    actual = fused(_inputs(SHAPES[0]), training=True)

    np.testing.assert_allclose(actual, plain(_inputs(SHAPES[0]), training=True), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(_moving(fused), before)


@pytest.mark.parametrize(
    "options", [{"scale": False}, {"center": False}, {"axis": 1}], ids=["no gamma", "no beta", "axis 1"]
)
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_what_the_kernel_cannot_do_keras_does(options, training):
    """Without gamma or beta, or along another axis, outputs are exactly Keras'."""
    plain, fused = _pair(SHAPES[0], **options)

    actual = fused(_inputs(SHAPES[0]), training=training)

    np.testing.assert_array_equal(actual, plain(_inputs(SHAPES[0]), training=training))
    np.testing.assert_array_equal(_moving(fused), _moving(plain))


def test_a_mask_is_heeded():
    """Masked steps do not enter the statistics, as in Keras."""
    plain, fused = _pair(SHAPES[1])
    mask = tf.sequence_mask([9, 9, 9, 1, 2, 3, 4, 5], 9)

    actual = fused(_inputs(SHAPES[1]), training=True, mask=mask)

    np.testing.assert_array_equal(actual, plain(_inputs(SHAPES[1]), training=True, mask=mask))
    np.testing.assert_array_equal(_moving(fused), _moving(plain))


def test_it_works_in_a_graph_of_unknown_batch_size():
    """Traced once for any batch size, it gives Keras' outputs and statistics for 4 cubes and for 2."""
    plain, fused = _pair(SHAPES[0])
    traced = tf.function(
        lambda inputs: fused(inputs, training=True),
        input_signature=[tf.TensorSpec((None, *SHAPES[0][1:]), tf.float32)],
    )

    for count in (4, 2):
        inputs = _inputs((count, *SHAPES[0][1:]))
        np.testing.assert_allclose(traced(inputs), plain(inputs, training=True), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(_moving(fused), _moving(plain), rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 5, 6, 7, 3), (1, 1, 1, 1, 3)], ids=["one cube", "one voxel"])
def test_a_batch_of_one_is_normalised_as_in_keras(shape):
    """One cube has a variance over its voxels; one voxel has variance 0 and comes out as beta."""
    plain, fused = _pair(shape)

    actual = fused(_inputs(shape), training=True)

    np.testing.assert_allclose(actual, plain(_inputs(shape), training=True), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(_moving(fused), _moving(plain), rtol=1e-5, atol=1e-7)
