"""A short film of several policies side by side: drawn off-screen (OpenGL in software where there is no GPU), animated WebP."""

import base64
import io
import os
from ctypes.util import find_library
from typing import Any

import numpy as np

from fewbit.engine.policy import Policy
from fewbit.errors import FewbitError, MissingExtra, first_line
from fewbit.report.episodes import trace
from fewbit.rl.returns import make

WIDTH, HEIGHT, RATE = 240, 240, 12.5  # of one policy's picture; frames a second
QUALITY = 55
SKY = (222, 230, 238)  # where nothing is drawn

Words = dict[str, Any]


def film(policies: dict[str, Policy], env: str, arguments: dict[str, Any], seed: int, seconds: float) -> Words:
    """{"image", "still": data URIs, "seconds", "names", "ended"}: the first `seconds` of one episode of each, in one picture."""
    strips, ended, rate = [], {}, RATE
    for name, policy in policies.items():
        made = make(env, {**arguments, "render_mode": "rgb_array"})
        try:
            fps = float(made.metadata.get("render_fps") or 30)
            every = max(1, round(fps / RATE))
            rate = fps / every
            found = trace(policy, made, seed, int(seconds * fps), every, _view)
        except Exception as e:
            raise FewbitError(f"{env} cannot be filmed here: {first_line(e)}") from None
        finally:
            made.close()
        strips.append([_fit(image) for image in found.images])
        ended[name] = f"{len(found.actions) / fps:.1f}" if found.ended and len(found.actions) < int(seconds * fps) else ""
    longest = max(map(len, strips))
    frames = [np.concatenate([s[min(k, len(s) - 1)] for s in strips], 1) for k in range(longest)]
    animated, still = _webp(frames, rate)
    return {"image": animated, "still": still, "seconds": f"{longest / rate:.0f}", "names": list(policies), "ended": ended}


def off_screen() -> None:
    """MuJoCo draws without a display; it looks for how when it is imported, so this comes before."""
    found = next((kind for kind, library in (("osmesa", "OSMesa"), ("egl", "EGL")) if find_library(library)), "")
    if found:
        os.environ.setdefault("MUJOCO_GL", found)


def _view(env: Any) -> np.ndarray:
    """What the environment shows; of a MuJoCo robot that walks away, a camera that goes along."""
    inner = env.unwrapped
    model: Any = getattr(inner, "model", None)
    data = getattr(inner, "data", None)
    if getattr(inner, "_renderer", None) is None and not hasattr(inner, "mujoco_renderer") and model is not None:
        env.render()  # makes its renderer
    renderer = getattr(inner, "_renderer", None)
    if renderer is None or data is None or getattr(model, "nq", 0) < 7:
        return np.asarray(env.render())
    import mujoco

    camera, option = mujoco.MjvCamera(), mujoco.MjvOption()
    camera.lookat[:] = [data.qpos[0], data.qpos[1], 0.8 * float(model.qpos0[2])]
    camera.distance, camera.azimuth, camera.elevation = 3.1 * float(model.qpos0[2]), 125, -14
    option.flags[mujoco.mjtVisFlag.mjVIS_INERTIA] = True  # where the mass is: models without meshes have little else to show
    renderer.update_scene(data, camera, option)
    renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
    image = renderer.render().copy()
    image[(image == 0).all(axis=-1)] = SKY
    return image


def _fit(image: np.ndarray) -> np.ndarray:
    """The middle of a picture, HEIGHT by WIDTH."""
    image_module = _pillow()
    picture = image_module.fromarray(image)
    share = max(WIDTH / picture.width, HEIGHT / picture.height)
    wide, high = round(picture.width * share), round(picture.height * share)
    left, top = (wide - WIDTH) // 2, (high - HEIGHT) // 2
    return np.asarray(picture.resize((wide, high)).crop((left, top, left + WIDTH, top + HEIGHT)))


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtra("pillow", "report") from None
    return Image


def _webp(frames: list[np.ndarray], rate: float) -> tuple[str, str]:
    pictures, out, first = [_pillow().fromarray(f) for f in frames], io.BytesIO(), io.BytesIO()
    pictures[0].save(
        out, "WEBP", save_all=True, append_images=pictures[1:], duration=round(1000 / rate), loop=0, quality=QUALITY, method=4
    )
    pictures[0].save(first, "WEBP", quality=QUALITY)
    return tuple(f"data:image/webp;base64,{base64.b64encode(b.getvalue()).decode()}" for b in (out, first))  # type: ignore[return-value]
