"""Data between robots and policies: observations, actions, and the statistics that normalize them.

Order, low to high: statistics, normalize, action_tokens; observation, episode, window, policy.
"""
