"""train.py with a detector that compiles at once: for tests of everything around the detector.

Run as a program it takes train.py's arguments.
"""
import pathlib
import runpy
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from htd_jax.models import functional  # noqa: E402


def functions(config):
    """Functions that learn, with dropout, how many boxes an image has; the detections are one box an image."""
    def init():
        w = jax.random.normal(jax.random.key(config.seed), (12, 2))
        fcs = {0: {"kernel": w}, 1: {"kernel": jnp.ones((2, config.model.fc_channels))}}
        return {"head": {"fcs": fcs}}, {"mean": jnp.full(12, 0.2)}

    def features(params, frozen, images):
        means = images.astype(jnp.float32).reshape(-1, 2, 32, 2, 32, 3).mean((2, 4)).reshape(-1, 12) / 255
        return (means - frozen["mean"][None]) @ params["head"]["fcs"][0]["kernel"] @ params["head"]["fcs"][1]["kernel"]

    def loss(params, frozen, batch, key):
        x = features(params, frozen, batch["image"])
        x = x * jax.random.bernoulli(key, 0.8, x.shape)
        value = jnp.mean((x.sum(1) - batch["valid"].sum(1)) ** 2)
        return value, dict(loss=value, loss_count=value)

    def detect(states, batch):
        params, frozen = states
        count = batch["image"].shape[0]
        x = features(params, frozen, batch["image"])
        boxes = jnp.tile(jnp.array([4.0, 4, 40, 40]), (count, config.test.max_detections, 1))
        return dict(boxes=boxes, scores=jax.nn.sigmoid(jnp.tile(x[:, :1], (1, config.test.max_detections))),
                    labels=jnp.zeros(boxes.shape[:2], jnp.int32),
                    valid=jnp.tile(jnp.arange(config.test.max_detections) == 0, (count, 1)))

    return functional.Functions(None, init, loss, detect)


if __name__ == "__main__":
    functional.functions = functions
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
