"""Parts that training loops share: order of data, parameter groups and schedules, adapters, loss, exact resume."""
