"""timm folders."""
