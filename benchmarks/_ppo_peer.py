"""PPO by Stable-Baselines3, run in an environment of its own: a network, a budget, weights out.

Called as `_ppo_peer.py TASK.json RESULT.json`. The environment is a batch of the compiled
simulator: what each server works on is a MultiDiscrete choice, masked to the classes with jobs, so
that the policy is work-conserving (MaskablePPO of sb3-contrib).
"""

import json
import sys
import time
from pathlib import Path

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import torch
from sb3_contrib import MaskablePPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from decisionppl.models import queueing
from decisionppl.models._queue_events import Draws, servable, shares, start, transition


class Network(VecEnv):
    """Copies of a network, one event a step, without end; the reward is what an event costs
    less than usual, in units that make returns of the order one."""

    def __init__(self, network, copies, seed, usual, scale):
        n, m = network.num_classes, network.num_servers
        super().__init__(
            copies,
            gym.spaces.Box(0.0, np.inf, (n,), np.float32),
            gym.spaces.MultiDiscrete([n + 1] * m),
        )
        self.key, self.count, self.actions = jax.random.key(seed), 0, None

        @jax.jit
        def begin(key):
            gaps, works = jax.random.exponential(key, (2, copies, n))
            return jax.vmap(lambda g, w: start(network, g, w, count=False))(gaps, works)

        @jax.jit
        def forward(state, serve, key):
            drawn = jax.random.exponential(key, (copies,))

            def one(state, serve, x):
                after, event = transition(network, state, shares(serve, n), Draws(x, x))
                return after, (usual - event.cost) * scale

            after, reward = jax.vmap(one)(state, serve, drawn)
            return after, jnp.log1p(after.length), reward, masks(after)

        @jax.jit
        def masks(state):
            can = jax.vmap(lambda x: servable(network, x))(state.length)
            return jnp.concatenate([can, ~can.any(2, keepdims=True)], 2).reshape(copies, -1)

        self.begin, self.forward, self.masks = begin, forward, masks

    def reset(self):
        self.state = self.begin(jax.random.fold_in(self.key, 0))
        self.mask = np.asarray(self.masks(self.state))
        return np.log1p(np.array(self.state.length))

    def step_async(self, actions):
        self.actions = jnp.asarray(actions)

    def step_wait(self):
        self.count += 1
        key = jax.random.fold_in(self.key, self.count)
        self.state, seen, reward, mask = self.forward(self.state, self.actions, key)
        self.mask = np.asarray(mask)
        done = np.zeros(self.num_envs, bool)
        return np.array(seen), np.array(reward), done, [{} for _ in range(self.num_envs)]

    def env_method(self, method_name, *args, indices=None, **kwargs):
        if method_name != "action_masks":
            raise AttributeError(method_name)
        return list(self.mask)

    def has_attr(self, attr_name):
        return attr_name == "action_masks"

    def close(self):
        pass

    def get_attr(self, attr_name, indices=None):
        return [None] * self.num_envs

    def set_attr(self, attr_name, value, indices=None):
        raise AttributeError(attr_name)

    def env_is_wrapped(self, wrapper_class, indices=None):
        return [False] * self.num_envs


class Budget(BaseCallback):
    """Stops after so many seconds of CPU time; learning and clipping slow down until then."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds, self.begin = seconds, time.process_time()

    def left(self):
        return max(0.0, 1 - (time.process_time() - self.begin) / self.seconds)

    def _on_step(self):
        return self.left() > 0


def train(task):
    """Weights of the policy, with what its training took."""
    torch.set_num_threads(1)
    torch.manual_seed(task["seed"])
    network = queueing.instance(task["instance"])
    usual = task["usual"]
    scale = (1 - task["discount"]) / usual
    made = Network(network, task["copies"], task["seed"], usual, scale)
    budget = Budget(task["seconds"])
    model = MaskablePPO(
        "MlpPolicy", made, seed=task["seed"], device="cpu", n_steps=task["steps"],
        batch_size=task["batch"], n_epochs=task["epochs"], gamma=task["discount"],
        gae_lambda=task["trace"], target_kl=task["kl"],
        learning_rate=lambda _: task["rate"] * max(budget.left(), 0.05),
        clip_range=lambda _: max(task["clip"] * budget.left(), 0.01),
        policy_kwargs={"net_arch": task["hidden"], "activation_fn": torch.nn.Tanh},
    )  # fmt: skip
    made.reset()
    budget.begin = time.process_time()
    model.learn(10**12, callback=budget)
    took = time.process_time() - budget.begin
    parts = [*model.policy.mlp_extractor.policy_net, model.policy.action_net]
    layers = [p for p in parts if isinstance(p, torch.nn.Linear)]
    weights = [[p.weight.detach().numpy().T.tolist(), p.bias.detach().tolist()] for p in layers]
    return {"weights": weights, "events": made.count * made.num_envs, "seconds": took}


if __name__ == "__main__":
    result = train(json.loads(Path(sys.argv[1]).read_text()))
    Path(sys.argv[2]).write_text(json.dumps(result))
