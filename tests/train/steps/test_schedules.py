"""Learning rates, step by step."""

import numpy as np
import pytest

from train.steps.schedules import learning_rate

# Learning rate schedules of optax divide an int32 count by a float.
pytestmark = pytest.mark.usefixtures("usual_promotion")


def test_learning_rate_of_zaremba(digits):
  digits.schedule, digits.learning_rate, digits.constant_epochs, digits.decay = "zaremba", 2, 3, 1.5
  rate = learning_rate(digits, per_epoch=10, total=100)
  # The first three epochs are constant; from the fourth on each begins with a division.
  steps = [0, 29, 30, 39, 40, 55]
  np.testing.assert_allclose(
    [rate(step) for step in steps], [2, 2, 2 / 1.5, 2 / 1.5, 2 / 1.5**2, 2 / 1.5**3], rtol=1e-6
  )


def test_learning_rate_in_steps_and_along_a_cosine(digits):
  digits.learning_rate, digits.schedule = 2.0, "step"
  digits.step_epochs, digits.step_factor = (2, 5), 0.5
  rate = learning_rate(digits, per_epoch=10, total=100)
  np.testing.assert_allclose([rate(x) for x in (0, 19, 20, 49, 50, 99)], [2, 2, 1, 1, 0.5, 0.5])
  digits.schedule = "cosine"
  rate = learning_rate(digits, per_epoch=10, total=100)
  steps = np.arange(0, 101, 20)
  np.testing.assert_allclose(
    [rate(int(x)) for x in steps], 1 + np.cos(np.pi * steps / 100), atol=1e-6
  )


@pytest.mark.parametrize(
  "changes",
  [
    dict(schedule="step", step_epochs=(1, 2**31 - 1)),
    dict(schedule="zaremba", constant_epochs=2**31 - 1),
  ],
)
def test_what_comes_after_the_end_may_be_far(digits, changes):
  digits.learning_rate, digits.step_factor = 2.0, 0.5
  with digits.unlocked():
    digits.update(changes)
  rate = learning_rate(digits, per_epoch=10, total=20)
  assert rate(0) == 2.0
  assert rate(19) == (1.0 if digits.schedule == "step" else 2.0)
