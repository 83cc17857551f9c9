"""Quantized training inside reinforcement learning: the artifact's codes are those that acted, and files are ordinary."""

import signal

import gymnasium as gym
import numpy as np
import pytest
import torch
from sb3_contrib import ARS, QRDQN, TQC, TRPO, CrossQ, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

import fewbit
from fewbit.graph.edit import const
from fewbit.graph.layers import LAYERS
from fewbit.numerics.formats import INTEGERS
from fewbit.rl import QuantizedTraining, grids

SMALL = {"net_arch": [24, 16]}
PARTS = (PPO, A2C)  # small rollouts; the others learn from a replay buffer


def make(algorithm, env="Pendulum-v1", seed=0, policy="MlpPolicy", policy_kwargs=None, **more):
    off = {"learning_starts": 50, "batch_size": 32} if algorithm not in PARTS else {"n_steps": 64}
    off |= {"train_freq": 4, "target_update_interval": 50} if algorithm is DQN else {}
    return algorithm(policy, env, seed=seed, policy_kwargs=dict(policy_kwargs or SMALL), **off | more)


def weights(model):
    """By name: the weights that the model's optimizers hold latents of."""
    return {k: w for k, w, _ in latents(model)}


def read(artifact):
    """(codes, scale) of each layer of an artifact, in order."""
    readers = [n.inputs[1].producer() for n in artifact.model.graph if n.op_type in LAYERS]
    return [(const(r.inputs[0]).astype(np.int64), const(r.inputs[1])) for r in readers]


def latents(model):
    """(name, weight, what its optimizer holds of it) of each weight that is trained on a grid, in the policy's order."""
    optimizers = [o for m in model.policy.modules() for o in vars(m).values() if isinstance(o, torch.optim.Optimizer)]
    named = model.policy.named_parameters()
    return [(k, w, o.state[w]) for k, w in named for o in optimizers if "latent" in o.state.get(w, {})]


def on_grid(weight: torch.Tensor, bits: int) -> bool:
    """An oracle of its own: in float64, every row is whole multiples of its largest weight's share, up to the format's codes."""
    rows = weight.detach().double().flatten(1)
    most = 2 ** (bits - 1) - 1
    codes = rows * most / rows.abs().amax(1, keepdim=True)
    return bool((codes == codes.round()).all())


class Watching(BaseCallback):
    """Every weight matrix of the policy, each time the environment is stepped."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def _on_step(self):
        self.seen.append({k: p.detach().clone() for k, p in self.model.policy.named_parameters() if p.ndim > 1})
        return True


def draws(model, n=100):
    return np.stack([np.clip(model.observation_space.sample(), -3, 3) for _ in range(n)])


def has_the_codes(source, model, bits):
    """The artifact of source has the codes that model's weights are, and their scales, to the bit."""
    made = fewbit.quantize(source, observations=draws(model), scheme=fewbit.Scheme(f"int{bits}"))
    trained = latents(model)
    assert len(read(made)) == len(trained)
    for (codes, scale), (_, weight, state) in zip(read(made), trained, strict=True):
        rows = weight.detach().double().flatten(1).numpy()
        wanted = rows / state["scale"].double().numpy()[:, None]
        assert np.array_equal(codes.reshape(rows.shape), wanted) and np.abs(codes).max() == 2 ** (bits - 1) - 1
        assert np.array_equal(scale, state["scale"].numpy())
    return made


@pytest.mark.parametrize(
    "algorithm, env, bits, acting",
    [
        (PPO, "Pendulum-v1", 8, ["mlp_extractor.policy_net.0", "mlp_extractor.policy_net.2", "action_net"]),
        (A2C, "CartPole-v1", 4, ["mlp_extractor.policy_net.0", "mlp_extractor.policy_net.2", "action_net"]),
        (SAC, "Pendulum-v1", 2, ["actor.latent_pi.0", "actor.latent_pi.2", "actor.mu"]),
        (TQC, "Pendulum-v1", 3, ["actor.latent_pi.0", "actor.latent_pi.2", "actor.mu"]),
        (TD3, "Pendulum-v1", 4, ["actor.mu.0", "actor.mu.2", "actor.mu.4"]),
        (DQN, "CartPole-v1", 6, ["q_net.q_net.0", "q_net.q_net.2", "q_net.q_net.4"]),
    ],
)
def test_the_artifact_has_the_codes_that_acted(algorithm, env, bits, acting, tmp_path):
    """All of the actor at every step, nothing of the critics; what was saved gives these codes, and their scales to the bit."""
    model, watching = make(algorithm, env), Watching()
    model.learn(150, callback=[QuantizedTraining(f"int{bits}"), watching])
    assert list(weights(model)) == [f"{name}.weight" for name in acting]
    for seen in watching.seen[:: len(watching.seen) // 5]:
        for name, weight in seen.items():
            if "target" not in name:
                assert on_grid(weight, bits) == (name in weights(model)), name
    assert all(not torch.equal(watching.seen[0][k], state["latent"]) for k, _, state in latents(model))
    assert not any("step" in vars(m.optimizer) for m in model.policy.modules() if hasattr(m, "optimizer"))
    model.save(tmp_path / "policy.zip")
    has_the_codes(tmp_path / "policy.zip", model, bits)


def test_a_normaliser_and_dictionaries_and_images(tmp_path):
    """VecNormalize's factors stay outside of the first layer; a camera's convolutions lie on grids too."""
    env = VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")]))
    model = make(PPO, env)
    model.learn(128, callback=QuantizedTraining("int3"))
    has_the_codes(model, model, 3)
    small = {"net_arch": [8], "features_extractor_kwargs": {"features_dim": 16}}
    model = make(DQN, "small_envs:Catch-v0", policy="CnnPolicy", policy_kwargs=small, buffer_size=200)
    model.learn(70, callback=QuantizedTraining("int4"))
    kinds = {w.ndim for _, w, _ in latents(model)}
    has_the_codes(model, model, 4)
    assert kinds == {2, 4}


def test_an_lstm_whose_two_weights_are_one_layer(tmp_path):
    kwargs = {"lstm_hidden_size": 8, "net_arch": [8], "enable_critic_lstm": False, "shared_lstm": True}
    model = RecurrentPPO("MlpLstmPolicy", "CartPole-v1", seed=0, n_steps=64, policy_kwargs=kwargs)
    model.learn(128, callback=QuantizedTraining("int4"))
    lstm = model.policy.lstm_actor
    both = torch.cat([lstm.weight_ih_l0, lstm.weight_hh_l0], 1).detach().double()
    made = fewbit.quantize(model, observations=np.zeros((4, 16, 4), np.float32), scheme=fewbit.Scheme("int4"))
    codes, scale = read(made)[0]
    assert on_grid(both, 4) and np.array_equal(codes * scale.astype(np.float64)[:, None], both.numpy())
    assert {np.abs(c).max() for c, _ in read(made)} == {7} and len(read(made)) == 3


def test_targets_follow_what_acts():
    """polyak_update walks parameters by their order: DQN's target is what acted, TD3's a mean of it."""
    model, watching = make(DQN, "CartPole-v1", target_update_interval=10), Watching()
    model.learn(150, callback=[QuantizedTraining("int4"), watching])
    for name, target in watching.seen[-1].items():
        if "target" in name:
            acted = name.replace("q_net_target", "q_net", 1)
            assert any(torch.equal(target, seen[acted]) for seen in watching.seen[-20:]), name
            assert not torch.equal(target, watching.seen[0][name])
    model = make(TD3, "Pendulum-v1", tau=1.0)
    model.learn(150, callback=QuantizedTraining("int4"))
    for a, b in zip(model.actor.parameters(), model.actor_target.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_step_is_the_optimizers_on_latents():
    """An oracle: the same gradients in an Adam of its own over float weights, which are then put on the grid."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(5, 7))
    shadow = torch.nn.Parameter(weight.detach().clone())
    gradients, settings = torch.randn(20, 5, 7), {"lr": 0.05, "weight_decay": 0.1}
    mine, plain = torch.optim.AdamW([weight], **settings), torch.optim.AdamW([shadow], **settings)
    grids.GridStep(mine, {"w": [weight]}, INTEGERS["int3"])
    for gradient in gradients:
        weight.grad, shadow.grad = gradient.clone(), gradient.clone()
        mine.step()
        plain.step()
        held = mine.state[weight]
        assert torch.equal(held["latent"], shadow)
        codes = (shadow.detach().double() / held["scale"].double()[:, None]).round().clamp(-3, 3)
        assert torch.equal(weight.detach().double(), codes * held["scale"].double()[:, None]) and on_grid(weight, 3)


@pytest.mark.parametrize("bits, slack", [(8, 1.2), (4, 1.01), (3, 1.01), (2, 1.01)])
def test_the_scale_is_near_the_best(bits, slack):
    """Of least squared error, against a fine search."""
    torch.manual_seed(0)
    latent, fmt = torch.randn(40, 64), INTEGERS[f"int{bits}"]

    def error(scale):
        return (latent - grids.nearest(latent, scale, fmt) * scale[:, None]).square().sum(1)

    full = latent.abs().amax(1) / fmt.quant_max
    best = torch.stack([error(full * share) for share in torch.linspace(0.1, 1.1, 2000)]).amin(0)
    assert (error(grids.first_scale(latent, fmt)).sum() / best.sum()).item() < slack
    assert torch.equal(grids.first_scale(torch.zeros(2, 3), fmt), torch.ones(2))


def started(model):
    """As learn() starts, and no step."""
    callback = QuantizedTraining("int2")
    model._setup_learn(1, callback=callback)
    callback.on_training_start({}, {})
    callback.on_training_end()


def test_a_checkpoint_is_an_ordinary_zip_and_goes_on_as_if_it_had_not_stopped(tmp_path):
    """Saved by a CheckpointCallback that comes before ours; latents come back with the optimizer's state."""
    model = make(SAC)
    saving = CheckpointCallback(100, str(tmp_path), "at")
    watching = Watching()
    model.learn(200, callback=[saving, QuantizedTraining("int2"), watching])
    again = SAC.load(tmp_path / "at_100_steps.zip", env=gym.make("Pendulum-v1"))
    for name, parameter in again.policy.named_parameters():
        assert parameter.ndim < 2 or torch.equal(parameter, watching.seen[99][name])
    saved = {k: state["latent"].clone() for k, _, state in latents(again)}
    assert set(saved) == set(weights(model)) and all(on_grid(w, 2) for w in weights(again).values())
    fewbit.quantize(tmp_path / "at_100_steps.zip", observations=draws(again), scheme=fewbit.Scheme("int2"))
    started(again)
    assert all(torch.equal(saved[k], state["latent"]) for k, _, state in latents(again))
    assert all(torch.equal(w, watching.seen[99][k]) for k, w in weights(again).items())
    again.learn(100, callback=QuantizedTraining("int4"))  # to other grids: the saved latent is not of these
    assert all(on_grid(w, 4) for w in weights(again).values())


def test_plain_training_after_it_leaves_no_stale_latents():
    model = make(A2C, "CartPole-v1")
    model.learn(64, callback=QuantizedTraining("int2"))
    model.learn(64)
    floats = {k: w.detach().clone() for k, w in weights(model).items()}
    assert not any(on_grid(w, 2) for w in floats.values())
    started(model)
    assert all(torch.equal(state["latent"], floats[k]) for k, _, state in latents(model))


def test_ctrl_c_inside_a_step_leaves_all_weights_on_their_grids(tmp_path):
    """The signal arrives while the optimizer holds latents; it is raised when they are put away."""
    model = make(PPO)
    plain, calls, acting = model.policy.optimizer.step, [], [p for k, p in model.policy.named_parameters() if "policy_net" in k]

    def interrupted(*args, **kwargs):
        calls.append(0)
        if len(calls) == 5:
            assert not any(on_grid(w, 4) for w in acting[::2])
            signal.raise_signal(signal.SIGINT)
            calls.append("went on")
        return plain(*args, **kwargs)

    model.policy.optimizer.step = interrupted
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        model.learn(128, callback=QuantizedTraining("int4"))
    assert calls[-1] == "went on" and signal.getsignal(signal.SIGINT) is before
    assert all(on_grid(w, 4) for w in weights(model).values())
    model.save(tmp_path / "stopped.zip")
    has_the_codes(tmp_path / "stopped.zip", model, 4)
    model.learn(64, callback=QuantizedTraining("int4"))
    assert all(on_grid(w, 4) for w in weights(model).values()) and model.policy.optimizer.step is interrupted


def test_an_optimizer_that_fails_leaves_all_weights_on_their_grids():
    model = make(PPO)

    def fails():
        assert not latents(model)  # they are in the parameters now
        raise RuntimeError("no")

    model.policy.optimizer.step = fails
    with pytest.raises(RuntimeError, match="no"):
        model.learn(64, callback=QuantizedTraining("int4"))
    assert all(on_grid(w, 4) for w in weights(model).values())


@pytest.mark.parametrize(
    "build, said",
    [
        (lambda: QRDQN("MlpPolicy", "CartPole-v1"), "QRDQN: layer .* is no weight"),
        (lambda: CrossQ("MlpPolicy", "Pendulum-v1"), "CrossQ: layer .* is no weight"),
        (lambda: ARS("LinearPolicy", "CartPole-v1", n_delta=2), "ARS: layer .* is no weight"),
        (lambda: TRPO("MlpPolicy", "Pendulum-v1", n_steps=64), "changed outside its optimizer"),
    ],
)
def test_what_cannot_be_trained_so_is_refused(build, said):
    with pytest.raises(fewbit.FewbitError, match=said) as error:
        build().learn(256, callback=QuantizedTraining("int4"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("weights", ["int16", "uint4", "float16", 4])
def test_other_formats_are_refused(weights):
    with pytest.raises(fewbit.FewbitError, match=f"weights {weights} .* int8, int6"):
        QuantizedTraining(weights)
    assert fewbit.rl.QuantizedTraining is QuantizedTraining
