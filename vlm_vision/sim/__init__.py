"""Robots in simulators: environments, recordings of scripted experts, policies in closed loop.

Order, low to high: environment, rendering, instructions, metaworld; baselines, record; intervals, outcomes, controls; rollout,
video. Imports neither MuJoCo nor Meta-World before an environment is made (`pip install 'vlm-vision[sim]'`).
"""
