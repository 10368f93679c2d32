"""Numbers of the page: attention, stages, maps, comparisons."""
