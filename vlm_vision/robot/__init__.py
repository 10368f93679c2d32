"""What robots and policies say to each other: observations, actions, and the statistics between their units and a network's.

Order, low to high: statistics, normalize, action_tokens; observation, episode, window, policy.
"""
