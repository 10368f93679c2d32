"""The page that shows what an encoder computes: numbers of the model itself, in one html file."""
