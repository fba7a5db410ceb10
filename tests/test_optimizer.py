import keras
import numpy as np
import pytest

from luna_cls.errors import InputError
from luna_cls.learning.optimizer import adamw
from luna_cls.settings import OptimizerSettings

pytestmark = pytest.mark.usefixtures("float32_policy")


def _after_each_step(optimizer, gradients):
    """The weight, which begins at 1, and its average after a step with each gradient."""
    weight = keras.Variable([1.0])
    weights, averages = [], []
    for gradient in gradients:
        optimizer.apply([keras.ops.convert_to_tensor([gradient], "float32")], [weight])
        weights.append(float(weight[0]))
        averages += [float(average[0]) for average in optimizer.averages]
    return weights, averages


def test_averages_follow_the_weights():
    """A step keeps t / (t + 9) of the average after t steps, at most `ema`: 0, 1/10, 2/11, 1/4, 1/4 of it."""
    settings = OptimizerSettings(learning_rate=0.1)

    weights, averages = _after_each_step(adamw(settings, 5, ema=0.25), [1.0, -2.0, 0.5, 1.0, 3.0])

    expected = 0.0
    for kept, weight, average in zip([0, 1 / 10, 2 / 11, 1 / 4, 1 / 4], weights, averages, strict=True):
        expected = kept * expected + (1 - kept) * weight
        assert average == pytest.approx(expected, rel=1e-6)
    assert weights == _after_each_step(adamw(settings, 5), [1.0, -2.0, 0.5, 1.0, 3.0])[0]


@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        ({"decay_steps": 2, "decay_rate": 0.5}, [1, 1, 0.5, 0.5, 0.25]),
        ({"decay_steps": 2, "decay_rate": 0.25, "staircase": False}, [1, 0.5, 0.25, 0.125, 0.0625]),
        ({"schedule": "cosine"}, [1, 0.8535534, 0.5, 0.1464466, 0]),
        ({"schedule": "cosine", "warmup_steps": 2}, [0, 0.5, 1, 0.5, 0]),
    ],
    ids=["staircase", "exponential", "cosine", "warm-up"],
)
def test_the_learning_rate_goes_by_its_schedule(settings, rates):
    """In shares of 0.01, at the beginning of a training of four steps and after each of them."""
    optimizer = adamw(OptimizerSettings(learning_rate=0.01, **settings), steps=4)
    gone = []
    for _ in rates:
        gone.append(float(keras.ops.convert_to_numpy(optimizer.learning_rate)))
        _after_each_step(optimizer, [1.0]) if not optimizer.built else optimizer.iterations.assign_add(1)

    np.testing.assert_allclose(gone, 0.01 * np.array(rates), rtol=1e-5, atol=1e-9)


def test_gradients_are_clipped_by_their_common_norm():
    """Of norm 5, clipped to 1, a gradient (3, 4) is (0.6, 0.8): AdamW's first moment is a tenth of that."""
    optimizer = adamw(OptimizerSettings(clip_norm=1.0), steps=1)
    weights = [keras.Variable([0.0]), keras.Variable([0.0])]

    optimizer.apply([keras.ops.convert_to_tensor([value]) for value in (3.0, 4.0)], weights)

    moments = [float(v.numpy()[0]) for v in optimizer.variables if v.path.endswith("momentum")]
    assert moments == pytest.approx([0.06, 0.08], rel=1e-6)
    assert float(optimizer.largest_gradient_norm.numpy()) == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup_steps": 5}, r"warmup_steps goes with optimizer.schedule = cosine. Received: 5 with expo"),
        ({"warmup_steps": 8, "schedule": "cosine"}, r"fewer than the 8 steps of the training. Received: 8"),
    ],
)
def test_a_warm_up_that_cannot_be_is_refused(settings, message):
    """By a schedule that has none, or as long as the training: an error that says what to change."""
    with pytest.raises(InputError, match=message):
        adamw(OptimizerSettings(**settings), steps=8)


def test_biases_and_normalization_are_spared_from_decay():
    """At a gradient of zero a kernel shrinks by the rate times the decay, a bias not at all, unless asked."""
    for everything, expected in ((False, [0.95, 1.0, 1.0, 1.0]), (True, [0.95] * 4)):
        settings = OptimizerSettings(
            learning_rate=0.1, weight_decay=0.5, decay_biases_and_normalization=everything
        )
        weights = [keras.Variable([1.0], name=name) for name in ("kernel", "bias", "gamma", "beta")]
        adamw(settings, steps=1).apply([keras.ops.zeros(1)] * 4, weights)
        assert [float(weight.numpy()[0]) for weight in weights] == pytest.approx(expected, rel=1e-6)
