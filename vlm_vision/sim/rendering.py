"""Images of a MuJoCo model without a screen."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import weakref
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np

_open: weakref.WeakSet[Renderer] = weakref.WeakSet()


class Renderer:
    """Draws a model from its cameras, at any size.

    On Linux by EGL, where the variable MUJOCO_GL does not choose another way, whichever module imported MuJoCo first.

    Args:
        model: a mujoco.MjModel.
        effects: shadows, reflections and multisampling. Without them an image takes an eighth of the time: about 10 ms on one
            core.
        hidden: groups of shapes that are left out.

    Raises:
        OSError: nothing to draw with.
    """

    def __init__(self, model: Any, *, effects: bool = False, hidden: Sequence[int] = ()):
        mujoco = import_module("mujoco")  # it has no types
        self._model, self._mujoco = model, mujoco
        if not effects:
            model.vis.quality.offsamples = model.vis.quality.shadowsize = 0
        self._size = model.vis.global_.offheight, model.vis.global_.offwidth
        try:
            self._gl = _context()(*reversed(self._size))
            self._gl.make_current()
            self._drawing = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        except (mujoco.FatalError, RuntimeError, ImportError, AttributeError) as error:  # PyOpenGL found no library
            raise OSError(
                f"MuJoCo cannot load OpenGL ({error}): apt-get install libegl1 libgl1-mesa-dri, or set the variable MUJOCO_GL to "
                "osmesa or glfw"
            ) from None
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._drawing)
        self._scene, self._option = mujoco.MjvScene(model, maxgeom=2000), mujoco.MjvOption()
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = self._scene.flags[flag] and effects
        for group in hidden:
            self._option.geomgroup[group] = 0
        _open.add(self)
        atexit.unregister(_close_all)
        atexit.register(_close_all)  # after MuJoCo's own, so that it runs while there is a display

    def __call__(self, data: Any, camera: str, height: int, width: int) -> np.ndarray:
        """(height, width, 3) uint8, of a mujoco.MjData."""
        mujoco = self._mujoco
        self._gl.make_current()
        if height > self._size[0] or width > self._size[1]:
            self._size = max(height, self._size[0]), max(width, self._size[1])
            mujoco.mjr_resizeOffscreen(self._size[1], self._size[0], self._drawing)
        view = mujoco.MjvCamera()
        view.type, view.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, self._model.camera(camera).id
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(self._model, data, self._option, None, view, everything, self._scene)
        part, drawn = mujoco.MjrRect(0, 0, width, height), np.empty((height, width, 3), dtype=np.uint8)
        mujoco.mjr_render(part, self._scene, self._drawing)
        mujoco.mjr_readPixels(drawn, None, part, self._drawing)
        return np.flipud(drawn)

    def close(self) -> None:
        """Free the context; a second call does nothing."""
        if self in _open:
            _open.discard(self)
            self._gl.make_current()
            self._drawing.free()
            self._gl.free()


def _context() -> Any:
    """The class of contexts."""
    logging.getLogger("OpenGL").setLevel(logging.WARNING)  # PyOpenGL tells what it does not need
    by_egl = sys.platform == "linux" and os.environ.get("MUJOCO_GL", "") in ("", "egl")
    kind = import_module("mujoco.egl" if by_egl else "mujoco.gl_context").GLContext
    return type(kind.__name__, (kind,), {"_context": None})  # what it frees, should it fail to begin


def _close_all() -> None:
    for renderer in list(_open):
        renderer.close()
