class Failure(Exception):
    """A case that did not go as it must."""
