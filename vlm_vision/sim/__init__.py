"""Robots in simulators: environments, recordings of scripted experts, policies in closed loop.

Order, low to high: environment, rendering, instructions, metaworld, libero; baselines, record; intervals, outcomes, controls; rollout,
video. Imports no simulator before an environment is made
(`pip install 'vlm-vision[sim]'`, LIBERO: `[libero]`).
"""
