"""The example of a training loop of one's own learns what it is rewarded for."""

import numpy as np

from experiments.own_model import main


def test_the_reward_rises():
    rewards = main(steps=40)
    assert np.mean(rewards[:3]) < 0.55
    assert np.mean(rewards[-5:]) > 0.75
